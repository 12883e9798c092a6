"""Single-label classification of texts or images: head, losses, weights, metrics, decoding."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfft.config import TaskConfig
from tfft.data import Dataset
from tfft.evaluation import baselines, metrics
from tfft.evaluation.records import RowLogits
from tfft.spec import Backbone, Details, Fitted, Matrix, Reliability, Section, Table, Task
from tfft.tasks.heads import pooled_head
from tfft.utils.errors import UserError, nearest

MATRIX_CLASSES = 60  # classes in a confusion matrix; more are unreadable and make a huge page


def target_distribution(y_true, y_pred):
    """Return the target distribution of each row, [B, C].

    Class ids [B] or [B, 1] become one-hot; mixed targets [B, C] are passed through as float32.
    """
    # A single column is class ids, [B, 1], not a distribution.
    if len(y_true.shape) == 2 and y_true.shape[-1] != 1:
        return ops.cast(y_true, "float32")
    return ops.one_hot(ops.cast(ops.reshape(y_true, [-1]), "int32"), ops.shape(y_pred)[-1])


class CrossEntropy(keras.losses.Loss):
    """Cross-entropy of class ids, optionally smoothed or focal; one value per row.

    Smoothing mixes the target with the uniform distribution (Szegedy et al. 2016, section 7). Focal
    loss scales each row by (1 - p)^gamma (Lin et al. 2017, equation 4); gamma 0 is plain
    cross-entropy.
    """

    def __init__(self, label_smoothing: float = 0.0, gamma: float = 0.0, name: str = "loss"):
        # The reduction divides by the number of rows, not by the sum of weights, so a class weight
        # scales the contribution of its rows.
        super().__init__(name=name, reduction="sum_over_batch_size", dtype="float32")
        self.label_smoothing, self.gamma = label_smoothing, gamma

    def call(self, y_true, y_pred):
        """Compute the loss [B] of class ids [B], or mixed targets [B, C], and logits [B, C]."""
        log_p = ops.log_softmax(ops.cast(y_pred, "float32"), axis=-1)  # [B, C]
        target = target_distribution(y_true, y_pred)
        target_log_p = ops.sum(log_p * target, axis=-1)  # [B]
        loss = -target_log_p
        if self.gamma:
            # Clip 1 - p above 0: the gradient of the power is infinite there for gamma < 1.
            loss = loss * ops.power(ops.clip(-ops.expm1(target_log_p), 1e-7, 1.0), self.gamma)
        if self.label_smoothing:
            uniform = -ops.mean(log_p, axis=-1)
            loss = (1 - self.label_smoothing) * loss + self.label_smoothing * uniform
        return loss


class ProbabilityError(keras.losses.Loss):
    """Error between probabilities and the one-hot class, summed over classes; one value per row.

    `mse` is the Brier score (1950), a proper scoring rule: it keeps probabilities calibrated.
    `huber` (Huber 1964) is e^2 / 2 within `delta` and delta * (|e| - delta / 2) beyond; `smooth_l1`
    (Girshick 2015) is `huber` divided by `delta`.
    """

    def __init__(self, kind: str, delta: float, name: str = "loss"):
        super().__init__(name=name, reduction="sum_over_batch_size", dtype="float32")
        self.kind, self.delta = kind, delta

    def call(self, y_true, y_pred):
        """Compute the loss [B] of class ids [B], or mixed targets [B, C], and logits [B, C]."""
        p = ops.softmax(ops.cast(y_pred, "float32"), axis=-1)
        target = target_distribution(y_true, y_pred)
        error = ops.abs(p - target)
        if self.kind == "mse":
            return ops.sum(ops.square(error), axis=-1)
        square, linear = 0.5 * ops.square(error), self.delta * (error - 0.5 * self.delta)
        huber = ops.sum(ops.where(error <= self.delta, square, linear), axis=-1)
        return huber / self.delta if self.kind == "smooth_l1" else huber


class Classification(Task):
    """What classification with one class a row and with several have in common."""

    output = "probabilities"
    constant = "majority"
    features = "tfidf"

    def head(
        self, backbone: Backbone, config: TaskConfig, labels: Sequence[str]
    ) -> Callable[[Mapping[str, keras.KerasTensor], keras.KerasTensor | None], keras.KerasTensor]:
        """Return a function: features by name and padding mask (or None) -> logits [B, C].

        Raises:
            UserError: the backbone lacks the feature that `task.pooling` needs.
        """
        return pooled_head(backbone, config.pooling, config.dropout, len(labels))

    def records(self, split: Dataset, outputs: int, fitted: Fitted) -> RowLogits:
        """Return what collects the logits of each row."""
        return RowLogits(split, outputs)

    def baselines(self, train: Dataset, split: Dataset, outputs: int) -> dict[str, Any]:
        """Return the logits of a constant answer and of a linear model, by name."""
        return baselines.constant_and_linear(self, train, split, outputs)

    def example_signatures(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Return `classify`."""
        return ("classify",)


class OneClass(Classification):
    """Classification with exactly one class per row; targets are class ids [N]."""

    summary = "the probability of each class, and the most probable one"
    answers_with = "one of {count} classes"
    limits = (
        "It always answers with one of its classes, even for inputs unlike its training data.",
    )

    def loss(self, config: TaskConfig) -> keras.losses.Loss:
        """Build the loss of the config; it returns one value per row."""
        if config.loss == "focal":
            return CrossEntropy(gamma=config.focal_gamma)
        if config.loss != "cross_entropy":
            return ProbabilityError(config.loss, config.delta)
        return CrossEntropy(label_smoothing=config.label_smoothing)

    def row_weights(
        self, config: TaskConfig, labels: Sequence[str], targets: np.ndarray
    ) -> np.ndarray | None:
        """Return the weight of each row's class, [N], or None for equal weights.

        Raises:
            UserError: `task.class_weights` names an unknown class.
        """
        weights = class_weights(config, labels, targets)
        return None if weights is None else weights[targets]

    def metrics(self, logits: np.ndarray, targets: np.ndarray, fitted: Fitted) -> dict[str, float]:
        """Compute the headline metrics."""
        return metrics.headline(logits, targets)

    def bootstrap(
        self, logits: np.ndarray, targets: np.ndarray, draws: int, seed: int, fitted: Fitted
    ) -> dict[str, np.ndarray]:
        """Compute the headline metrics of bootstrap resamples, each [draws]."""
        return metrics.bootstrap(logits, targets, draws, seed)

    def details(
        self, logits: np.ndarray, split: Dataset, labels: Sequence[str], fitted: Fitted
    ) -> Details:
        """Compute metrics by class, the confusion matrix and losses by row."""
        targets = split.targets
        probabilities = metrics.softmax(logits)
        predicted = probabilities.argmax(axis=1)
        matrix = metrics.confusion(predicted, targets, logits.shape[1])
        by_class = metrics.from_confusion(matrix)

        def describe(position: int) -> dict[str, Any]:
            predicted_id = int(predicted[position])
            return {
                "label": labels[targets[position]],
                "predicted": labels[predicted_id],
                "confidence": float(probabilities[position, predicted_id]),
                "about": predicted_id,
            }

        columns = {name: by_class[name] for name in ("precision", "recall", "f1")}
        return Details(
            sections=(
                class_table(labels, columns, by_class["support"]),
                confusion_section(matrix, labels),
                reliability_section(metrics.reliability(probabilities, targets)),
            ),
            losses=metrics.log_losses(probabilities, targets),
            wrong=predicted != targets,
            describe=describe,
        )

    def constant_logits(self, targets: np.ndarray, classes: int) -> np.ndarray:
        """Return the logits of the class frequencies, [C]."""
        # Laplace's rule: one more row of each class, so that no share is 0.
        counts = np.bincount(targets, minlength=classes)
        return _to_logits((counts + 1) / (counts.sum() + classes))

    def linear_logits(
        self, features: Any, targets: np.ndarray, new_features: Any, classes: int
    ) -> np.ndarray:
        """Return the logits of logistic regression, [N, C].

        Raises:
            UserError: scikit-learn is not installed.
        """
        return _to_logits(baselines.logistic(features, targets, new_features, classes))

    def average(self, logits: Sequence[np.ndarray]) -> np.ndarray:
        """Return the logits of the mean probabilities of several passes, [N, C]."""
        return _to_logits(np.mean([metrics.softmax(part) for part in logits], axis=0))

    def activate(self, logits: np.ndarray, fitted: Fitted) -> np.ndarray:
        """Compute probabilities, float64 [N, C]."""
        return metrics.softmax(logits)

    def activation(self, fitted: Fitted, **arguments: Any) -> keras.layers.Layer:
        """Return a softmax layer."""
        return keras.layers.Activation("softmax", **arguments)

    def decode(
        self, logits: tf.Tensor, labels: Sequence[str], fitted: Fitted
    ) -> dict[str, tf.Tensor]:
        """Return `probabilities` float32 [B, C] and `label` string [B]."""
        # float32, because TF Serving's REST API writes no half or bfloat16.
        probabilities = tf.nn.softmax(tf.cast(logits, tf.float32))
        names = tf.gather(tf.constant(list(labels)), tf.argmax(logits, axis=-1))
        return {"probabilities": probabilities, "label": names}

    def answer(self, outputs: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
        """Return the outputs of a row as `{"label": ..., "probabilities": {label: p}}`."""
        return {
            "label": outputs["label"].decode("utf-8", "replace"),
            "probabilities": probabilities_by_label(outputs, labels),
        }

    def margin(
        self, outputs: Mapping[str, np.ndarray], fitted: Fitted, tokens: Any = None
    ) -> np.ndarray:
        """Return half the lead of the most probable class, [N]."""
        second, first = np.sort(outputs["probabilities"], axis=1)[:, -2:].T
        return (first - second) / 2


def class_weights(config: TaskConfig, labels: Sequence[str], ids: np.ndarray) -> np.ndarray | None:
    """Compute the weight of each class, [C], or None for equal weights.

    Args:
        config: section `task`.
        labels: class names.
        ids: class ids of the training rows, [N].

    Raises:
        UserError: `task.class_weights` names an unknown class.
    """
    weights = config.class_weights
    if weights is None:
        return None
    if weights == "balanced":
        counts = np.bincount(ids, minlength=len(labels))
        # The mean weight of the rows is 1; classes without rows do not count.
        return len(ids) / (np.maximum(counts, 1) * np.count_nonzero(counts))
    unknown = [name for name in weights if name not in labels]
    if unknown:
        raise UserError(
            f"task.class_weights: {unknown[0]!r} is not a class{nearest(unknown[0], labels)}"
        )
    return np.array([weights.get(name, 1.0) for name in labels])


def class_table(
    labels: Sequence[str], columns: Mapping[str, np.ndarray], support: np.ndarray
) -> Table:
    """Return the metrics of each class as a table, the weakest by `f1` first.

    Args:
        labels: class names.
        columns: name of a metric -> its values, [C].
        support: rows of each class, [C].
    """
    # Recall is undefined for a class without rows, so such classes have no metrics and come last.
    rows = [
        [label, *(float(v[i]) if support[i] else "" for v in columns.values()), int(support[i])]
        for i, label in enumerate(labels)
    ]
    order = sorted(range(len(labels)), key=lambda i: (support[i] == 0, columns["f1"][i]))
    header = ["class", *(name.replace("_", " ") for name in columns), "rows"]
    return Table("By class", header, rows, order)


def confusion_section(confusion: metrics.Confusion, labels: Sequence[str]) -> Section:
    """Return the confusion matrix; with many classes, of those with the most errors."""
    classes, title = np.arange(len(labels)), "confusion: true class down, predicted across"
    if len(labels) > MATRIX_CLASSES:
        # False negatives and false positives of each class.
        errors = confusion.by_true() + confusion.by_predicted() - 2 * confusion.hits()
        classes = np.sort(np.argsort(-errors, kind="stable")[:MATRIX_CLASSES])
        title += f"; the {len(classes)} of {len(labels):,} classes with the most errors"
    names = [labels[index] for index in classes]
    return Matrix(title, names, confusion.matrix(classes), confusion.by_true()[classes])


def reliability_section(bins: Mapping[str, np.ndarray]) -> Section:
    """Return the reliability diagram of binned confidences."""
    return Reliability("reliability (bars: share of rows)", bins)


def probabilities_by_label(outputs: Mapping[str, Any], labels: Sequence[str]) -> dict[str, float]:
    """Return the probabilities of a row, label -> probability."""
    return {n: float(p) for n, p in zip(labels, outputs["probabilities"], strict=True)}


def _to_logits(probabilities: np.ndarray) -> np.ndarray:
    """Convert probabilities to logits, float32."""
    # A probability of 0 would become -inf.
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)).astype(np.float32)
