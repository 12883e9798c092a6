"""Kinds of prediction: the name of a task in the YAML -> its `Task`."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from tfft.spec import Fitted, Task
from tfft.tasks import (
    image_classification,
    image_multilabel,
    question_answering,
    text_classification,
    text_multilabel,
    text_regression,
    token_classification,
)

_TASK_MODULES = (
    text_classification,
    image_classification,
    text_multilabel,
    image_multilabel,
    text_regression,
    token_classification,
    question_answering,
)
TASKS: Mapping[str, Task] = MappingProxyType(
    {module.TASK.name: module.TASK for module in _TASK_MODULES}
)


def prepare_rows(
    task: Task, inputs: Any, columns: Iterable[Any]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the model's inputs for raw columns and, for a task of tokens, where their tokens are.

    Args:
        task: the task of the model.
        inputs: the preprocessing (`preprocess.Inputs`).
        columns: the raw columns, B values each.
    """
    if task.of_tokens:
        batch, tokens = inputs.located_batch(*columns)
        return batch, tokens
    return inputs.batch(*columns), {}


def predict_logits(model: Any, batch: Mapping[str, np.ndarray], batch_size: int) -> np.ndarray:
    """Return the logits of a prepared batch, [E, ...], at most `batch_size` examples at once.

    A batch of rows may be many windows.

    Args:
        model: the model, a `keras.Model`.
        batch: inputs by name, [E, ...] each; at least one example.
        batch_size: examples at once.
    """
    examples = len(next(iter(batch.values())))
    return np.concatenate(
        [
            model.predict_on_batch({k: v[start : start + batch_size] for k, v in batch.items()})
            for start in range(0, examples, batch_size)
        ]
    )


def decode_rows(
    task: Task, logits: Any, tokens: Mapping[str, Any], labels: Sequence[str], fitted: Fitted
) -> dict[str, Any]:
    """Return the outputs for raw rows as tensors, from their logits.

    Args:
        task: the task of the model.
        logits: [B, ...].
        tokens: where the tokens are, for a task of tokens.
        labels: names of the outputs.
        fitted: the fitted values of the model.
    """
    return task.locate(task.decode(logits, labels, fitted), tokens, labels, fitted)


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
