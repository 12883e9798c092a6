"""Kinds of prediction: the name of a task in the YAML -> its `Task`."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from tfft.spec import Task
from tfft.tasks import (
    image_classification,
    image_multilabel,
    text_classification,
    text_multilabel,
    text_regression,
)

_TASK_MODULES = (
    text_classification,
    image_classification,
    text_multilabel,
    image_multilabel,
    text_regression,
)
TASKS: Mapping[str, Task] = MappingProxyType(
    {module.TASK.name: module.TASK for module in _TASK_MODULES}
)


def answers(
    task: Task, outputs: Mapping[str, np.ndarray], labels: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the answer of each row as plain data.

    Args:
        task: the task that decoded the outputs.
        outputs: the outputs by name, [N, ...] each.
        labels: class names.
    """
    rows = len(next(iter(outputs.values())))
    return [
        task.answer({name: values[row] for name, values in outputs.items()}, labels)
        for row in range(rows)
    ]
