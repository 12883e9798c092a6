"""Kinds of prediction: a task's name in the YAML -> its `Task`."""

from collections.abc import Mapping
from types import MappingProxyType

from tfft.spec import Task
from tfft.tasks import image_classification, image_multilabel, text_classification, text_multilabel

_ROOMS = (text_classification, image_classification, text_multilabel, image_multilabel)
TASKS: Mapping[str, Task] = MappingProxyType({room.TASK.name: room.TASK for room in _ROOMS})
