"""Multi-label classification of texts or text pairs."""

from tfft.config import tasks as task_sections
from tfft.tasks.multilabel import Multilabel


class TextMultilabel(Multilabel):
    """A text or a pair of texts has any number of labels."""

    section = task_sections.TextMultilabel
    pipeline = "text-classification"


TASK = TextMultilabel()
