"""Multi-label classification of texts or text pairs."""

from dataclasses import replace

from tfft.config import tasks as task_sections
from tfft.tasks import image_multilabel

TASK = replace(image_multilabel.TASK, section=task_sections.TextMultilabel)
