"""Single-label classification of texts or text pairs."""

from tfft.config import tasks as task_sections
from tfft.tasks.classification import OneClass


class TextClassification(OneClass):
    """A text or a pair of texts has one class."""

    section = task_sections.TextClassification
    pipeline = "text-classification"


TASK = TextClassification()
