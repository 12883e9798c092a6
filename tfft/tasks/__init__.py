"""Kinds of prediction: the name of a task in the YAML -> its `Task`."""

from collections.abc import Mapping
from types import MappingProxyType

from tfft.spec import Task
from tfft.tasks import image_classification, image_multilabel, text_classification, text_multilabel

_TASK_MODULES = (text_classification, image_classification, text_multilabel, image_multilabel)
TASKS: Mapping[str, Task] = MappingProxyType(
    {module.TASK.name: module.TASK for module in _TASK_MODULES}
)
