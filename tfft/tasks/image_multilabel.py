"""Multi-label classification of images."""

from tfft.config import tasks as task_sections
from tfft.tasks.multilabel import Multilabel


class ImageMultilabel(Multilabel):
    """An image has any number of labels."""

    section = task_sections.ImageMultilabel
    features = "tiny"
    pipeline = "image-classification"


TASK = ImageMultilabel()
