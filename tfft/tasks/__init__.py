"""Kinds of prediction: a task's name in the YAML -> its `Task`."""

from collections.abc import Mapping
from types import MappingProxyType

from tfft.spec import Task
from tfft.tasks import text_classification

TASKS: Mapping[str, Task] = MappingProxyType({"text_classification": text_classification.TASK})
