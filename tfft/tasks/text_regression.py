"""Regression of texts or text pairs: one number per row, or several.

The network learns standardised targets; their mean and scale belong to the model, so that it
answers in the unit of the data.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfft.config import tasks as task_sections
from tfft.data import Dataset
from tfft.evaluation import baselines, regression_metrics
from tfft.evaluation.records import RowLogits
from tfft.spec import Backbone, Details, Fitted, Scatter, Section, Table, Task
from tfft.tasks.heads import pooled_head

MAX_PLOTS = 8  # scatter plots of predicted numbers
PARTS = 4  # ranges of true numbers whose errors the report compares


class NumberError(keras.losses.Loss):
    """Error of standardised numbers, averaged over them; one value per row.

    `huber` (Huber 1964) is e^2 / 2 within `delta` and delta * (|e| - delta / 2) beyond.
    """

    def __init__(self, kind: str, delta: float, name: str = "loss"):
        super().__init__(name=name, reduction="sum_over_batch_size", dtype="float32")
        self.kind, self.delta = kind, delta

    @staticmethod
    def target_width(outputs: int) -> int:
        """Return the number of values in a row's target."""
        return outputs

    def call(self, y_true, y_pred):
        """Compute the loss [B] of targets and predictions, both [B, K]."""
        error = ops.abs(ops.cast(y_pred, "float32") - ops.cast(y_true, "float32"))
        if self.kind == "huber":
            linear = self.delta * (error - 0.5 * self.delta)
            error = ops.where(error <= self.delta, 0.5 * ops.square(error), linear)
        elif self.kind == "mse":
            error = ops.square(error)
        return ops.mean(error, axis=-1)


class TextRegression(Task):
    """A text or a pair of texts has one number or several; targets are numbers [N, K]."""

    section = task_sections.TextRegression
    summary = "the predicted numbers"
    output = "values"
    constant = "mean"
    features = "tfidf"
    pipeline = "text-classification"  # transformers has no pipeline of its own for regression
    answers_with = "a number for each of {count} columns"

    def head(
        self, backbone: Backbone, config: Any, labels: Sequence[str]
    ) -> Callable[[Mapping[str, keras.KerasTensor], keras.KerasTensor | None], keras.KerasTensor]:
        """Return a function: features by name and padding mask (or None) -> numbers [B, K].

        Raises:
            UserError: the backbone lacks the feature that `task.pooling` needs.
        """
        return pooled_head(backbone, config.pooling, config.dropout, len(labels))

    def loss(self, config: Any) -> keras.losses.Loss:
        """Build the loss of the config; it returns one value per row."""
        return NumberError(config.loss, config.delta)

    def fit_targets(self, config: Any, targets: np.ndarray, has_new_head: bool = True) -> Fitted:
        """Return `mean` and `scale`, the standard deviation, of each number, [K]."""
        if not config.standardize or not has_new_head:
            return {}
        deviation = targets.std(axis=0, dtype=np.float64)
        # A constant target has no scale.
        scale = np.where(deviation > 0, deviation, 1.0)
        return {"mean": targets.mean(axis=0, dtype=np.float64), "scale": scale}

    def training_targets(self, config: Any, split: Dataset, fitted: Fitted) -> np.ndarray:
        """Return standardised targets, float32 [N, K]."""
        mean, scale = _mean_and_scale(fitted)
        return ((split.targets - mean) / scale).astype(np.float32)

    def folded_head(self, weights: Mapping[str, np.ndarray], fitted: Fitted) -> dict[str, Any]:
        """Return the head with mean and scale in its last layer."""
        mean, scale = _mean_and_scale(fitted)
        kernel, bias = (weights[f"head/logits/{name}"] for name in ("kernel", "bias"))
        return {
            **weights,
            "head/logits/kernel": (kernel * scale).astype(np.float32),
            "head/logits/bias": (bias * scale + mean).astype(np.float32),
        }

    def records(self, split: Dataset, outputs: int, fitted: Fitted) -> RowLogits:
        """Return what collects the numbers of each row."""
        return RowLogits(split, outputs)

    def baselines(self, train: Dataset, split: Dataset, outputs: int) -> dict[str, Any]:
        """Return the mean and the numbers of ridge regression, by name."""
        return baselines.constant_and_linear(self, train, split, outputs)

    def metrics(self, logits: np.ndarray, targets: np.ndarray, fitted: Fitted) -> dict[str, float]:
        """Compute the headline metrics."""
        return regression_metrics.headline(self.activate(logits, fitted), targets)

    def bootstrap(
        self, logits: np.ndarray, targets: np.ndarray, draws: int, seed: int, fitted: Fitted
    ) -> dict[str, np.ndarray]:
        """Compute the headline metrics of bootstrap resamples, each [draws]."""
        values = self.activate(logits, fitted)
        return regression_metrics.bootstrap(values, targets, draws, seed)

    def details(
        self, logits: np.ndarray, split: Dataset, labels: Sequence[str], fitted: Fitted
    ) -> Details:
        """Compute errors by range of the true number, and by number; squared errors by row."""
        targets = split.targets
        values = self.activate(logits, fitted)
        error = values - targets

        def describe(position: int) -> dict[str, Any]:
            single = len(labels) == 1
            return {
                f"{name}{'' if single else f' of {label}'}": float(array[position, index])
                for index, label in enumerate(labels)
                for name, array in (("value", targets), ("predicted", values), ("error", error))
            }

        sections: list[Section] = []
        if len(labels) > 1:
            sections.append(_column_table(labels, values, targets))
        sections.append(_range_table(labels, targets, error))
        for index, label in enumerate(labels[:MAX_PLOTS]):
            title = f"predicted {label} against the true one"
            sections.append(Scatter(title, targets[:, index], values[:, index]))
        losses = np.square(error / _mean_and_scale(fitted)[1]).mean(axis=1)
        return Details(tuple(sections), losses, losses > 0, describe)

    def constant_logits(self, targets: np.ndarray, classes: int) -> np.ndarray:
        """Return the mean of each number, [K]."""
        return targets.mean(axis=0, dtype=np.float64)

    def linear_logits(
        self, features: Any, targets: np.ndarray, new_features: Any, classes: int
    ) -> np.ndarray:
        """Return the numbers of ridge regression, [N, K].

        Raises:
            UserError: scikit-learn is not installed.
        """
        return baselines.ridge(features, targets, new_features)

    def average(self, logits: Sequence[np.ndarray]) -> np.ndarray:
        """Return the mean of the numbers of several passes, [N, K]."""
        return np.mean(logits, axis=0)

    def activate(self, logits: np.ndarray, fitted: Fitted) -> np.ndarray:
        """Compute numbers in the unit of the data, float64 [N, K]."""
        mean, scale = _mean_and_scale(fitted)
        return logits.astype(np.float64) * scale + mean

    def activation(self, fitted: Fitted, **arguments: Any) -> keras.layers.Layer:
        """Return a layer that computes numbers in the unit of the data."""
        mean, scale = _mean_and_scale(fitted)
        return keras.layers.Rescaling(np.asarray(scale), np.asarray(mean), **arguments)

    def decode(
        self, logits: tf.Tensor, labels: Sequence[str], fitted: Fitted
    ) -> dict[str, tf.Tensor]:
        """Return `values` float32 [B, K], in the unit of the data."""
        mean, scale = (tf.constant(x, tf.float32) for x in _mean_and_scale(fitted))
        return {"values": tf.cast(logits, tf.float32) * scale + mean}

    def answer(self, outputs: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
        """Return the outputs of a row: `{"value": x}`, or `{"values": {label: x}}` of several."""
        values = [float(value) for value in outputs["values"]]
        if len(values) == 1:
            return {"value": values[0]}
        return {"values": dict(zip(labels, values, strict=True))}

    def unit(self, output: np.ndarray, fitted: Fitted) -> np.ndarray:
        """Return the scale of the targets, or else of the predicted numbers, [K]."""
        if "scale" in fitted:
            return fitted["scale"]
        deviation = output.std(axis=0, dtype=np.float64)
        return np.where(deviation > 0, deviation, 1.0)

    def margin(
        self, outputs: Mapping[str, np.ndarray], fitted: Fitted, tokens: Any = None
    ) -> np.ndarray:
        """Return infinity, [N]: every output is a number, which is compared within the bound."""
        return np.full(len(outputs["values"]), np.inf)

    def example_signatures(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Return `regress` where there is one number, which is all that TF Serving's call has."""
        return ("regress",) if len(labels) == 1 else ()


def _mean_and_scale(fitted: Fitted) -> tuple[Any, Any]:
    """Return the mean and the scale of the targets, [K] each, or 0 and 1."""
    return fitted.get("mean", 0.0), fitted.get("scale", 1.0)


def _column_table(labels: Sequence[str], values: np.ndarray, targets: np.ndarray) -> Table:
    """Return the metrics of each number, the one with the lowest R2 first."""
    columns = regression_metrics.by_column(values, targets)
    rows = [
        [label, *(float(column[index]) for column in columns.values())]
        for index, label in enumerate(labels)
    ]
    order = [int(index) for index in np.argsort(columns["r2"], kind="stable")]
    return Table("By number", ["", *columns], rows, order)


def _range_table(labels: Sequence[str], targets: np.ndarray, error: np.ndarray) -> Table:
    """Return the errors of up to `PARTS` ranges of about equally many rows, the largest first."""
    rows, sizes = [], []
    for index, label in enumerate(labels):
        true, deviation = targets[:, index], targets[:, index].std() or 1.0
        # Equal numbers are in one range, so there may be fewer ranges than `PARTS`.
        limits = np.unique(np.quantile(true, np.arange(1, PARTS) / PARTS))
        part_of = np.searchsorted(limits, true, side="left")
        for part in np.unique(part_of):
            values, part_error = true[part_of == part], error[part_of == part, index]
            name = f"{label}: {values.min():.6g} to {values.max():.6g}"
            rmse = float(np.sqrt(np.square(part_error).mean()))
            mean_absolute, mean = float(np.abs(part_error).mean()), float(part_error.mean())
            rows.append([name, rmse, mean_absolute, mean, len(values)])
            sizes.append(rmse / deviation)  # numbers of different units are compared
    order = [int(row) for row in np.argsort([-size for size in sizes], kind="stable")]
    return Table("By range", ["true value", "rmse", "mae", "mean error", "rows"], rows, order)


TASK = TextRegression()
