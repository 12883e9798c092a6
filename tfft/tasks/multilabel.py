"""Multi-label classification of texts or images: losses, metrics, decoding.

A label is predicted where its probability reaches its threshold: 0.5 until thresholds are fitted on
the validation rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfft.config import TaskConfig
from tfft.data import Dataset
from tfft.evaluation import baselines, multilabel_metrics
from tfft.spec import Details, Fitted
from tfft.tasks.classification import (
    Classification,
    class_table,
    probabilities_by_label,
    reliability_section,
)

SEPARATOR = "|"  # separator between the labels of a row


class BinaryCrossEntropy(keras.losses.Loss):
    """Binary cross-entropy averaged over labels, optionally smoothed or focal; one value per row.

    Smoothing moves the targets 0 and 1 towards 0.5. Focal loss scales each term by (1 - p)^gamma,
    where p is the probability of the true outcome (Lin et al. 2017, equation 4).
    """

    def __init__(self, label_smoothing: float = 0.0, gamma: float = 0.0, name: str = "loss"):
        super().__init__(name=name, reduction="sum_over_batch_size", dtype="float32")
        self.label_smoothing, self.gamma = label_smoothing, gamma

    @staticmethod
    def target_width(classes: int) -> int:
        """Return the number of values in a row's target."""
        return classes

    def call(self, y_true, y_pred):
        """Compute the loss [B] of targets [B, C] from 0 to 1 and logits [B, C]."""
        x, y = ops.cast(y_pred, "float32"), ops.cast(y_true, "float32")
        y = y * (1 - self.label_smoothing) + self.label_smoothing / 2
        positive_loss, negative_loss = ops.softplus(-x), ops.softplus(x)  # -log p, -log (1 - p)
        if self.gamma:
            p = ops.sigmoid(x)
            # Clip above 0: the gradient of the power is infinite there for gamma < 1.
            positive_loss = positive_loss * ops.power(ops.clip(1 - p, 1e-7, 1.0), self.gamma)
            negative_loss = negative_loss * ops.power(ops.clip(p, 1e-7, 1.0), self.gamma)
        return ops.mean(y * positive_loss + (1 - y) * negative_loss, axis=-1)


class Multilabel(Classification):
    """Classification with any number of labels per row; targets are 0 or 1, float32 [N, C]."""

    summary = "the probability of each label, and the labels that reach their threshold"
    answers_with = "any number of {count} classes"
    unfitted = (
        "thresholds: 0.5 for every label, because there is no validation split to fit them on"
    )

    def loss(self, config: TaskConfig) -> keras.losses.Loss:
        """Build the loss of the config; it returns one value per row."""
        if config.loss == "focal":
            return BinaryCrossEntropy(gamma=config.focal_gamma)
        return BinaryCrossEntropy(label_smoothing=config.label_smoothing)

    def fit(self, logits: np.ndarray, targets: np.ndarray, fitted: Fitted) -> Fitted:
        """Add `thresholds`, [C]: for each label the one with the highest F1 on these rows."""
        probabilities = multilabel_metrics.sigmoid(logits)
        return {**fitted, "thresholds": multilabel_metrics.thresholds(probabilities, targets)}

    def metrics(self, logits: np.ndarray, targets: np.ndarray, fitted: Fitted) -> dict[str, float]:
        """Compute the headline metrics."""
        p = multilabel_metrics.sigmoid(logits)
        return multilabel_metrics.headline(p, targets, p >= thresholds_of(fitted))

    def bootstrap(
        self, logits: np.ndarray, targets: np.ndarray, draws: int, seed: int, fitted: Fitted
    ) -> dict[str, np.ndarray]:
        """Compute the headline metrics of bootstrap resamples, each [draws]."""
        p = multilabel_metrics.sigmoid(logits)
        return multilabel_metrics.bootstrap(p, targets, p >= thresholds_of(fitted), draws, seed)

    def details(
        self, logits: np.ndarray, split: Dataset, labels: Sequence[str], fitted: Fitted
    ) -> Details:
        """Compute metrics by label and losses by row."""
        targets = split.targets
        p = multilabel_metrics.sigmoid(logits)
        limits = np.broadcast_to(thresholds_of(fitted), p.shape[1:])
        predicted, ones = p >= limits, np.ones(len(targets))
        by_label = multilabel_metrics.by_label(predicted, targets, ones)
        counts = multilabel_metrics.from_counts(by_label)
        error = np.abs(p - targets)

        def describe(position: int) -> dict[str, Any]:
            # The label with the largest error is the one to explain.
            worst_label = int(error[position].argmax())
            return {
                "label": _join(targets[position] > 0, labels),
                "predicted": _join(predicted[position], labels),
                "confidence": float(p[position, worst_label]),
                "about": worst_label,
            }

        columns = {name: counts[name] for name in ("precision", "recall", "f1")}
        columns["average_precision"] = multilabel_metrics.Ranking(p, targets).average_precision(
            ones
        )
        columns["threshold"] = np.array(limits, np.float64)
        return Details(
            sections=(
                class_table(labels, columns, targets.sum(axis=0)),
                reliability_section(multilabel_metrics.reliability(p, targets)),
            ),
            losses=multilabel_metrics.log_losses(p, targets),
            wrong=(predicted != (targets > 0)).any(axis=1),
            describe=describe,
        )

    def constant_logits(self, targets: np.ndarray, classes: int) -> np.ndarray:
        """Return the logits of the label frequencies, [C]."""
        # Laplace's rule: one more row of each outcome, so that no share is 0 or 1.
        return _to_logits((targets.sum(axis=0) + 1) / (len(targets) + 2))

    def linear_logits(
        self, features: Any, targets: np.ndarray, new_features: Any, classes: int
    ) -> np.ndarray:
        """Return the logits of one logistic regression per label, [N, C].

        Raises:
            UserError: scikit-learn is not installed.
        """
        return _to_logits(baselines.logistic_by_label(features, targets, new_features))

    def average(self, logits: Sequence[np.ndarray]) -> np.ndarray:
        """Return the logits of the mean probabilities of several passes, [N, C]."""
        return _to_logits(np.mean([multilabel_metrics.sigmoid(part) for part in logits], axis=0))

    def activate(self, logits: np.ndarray, fitted: Fitted) -> np.ndarray:
        """Compute probabilities, float64 [N, C]."""
        return multilabel_metrics.sigmoid(logits)

    def activation(self, fitted: Fitted, **arguments: Any) -> keras.layers.Layer:
        """Return a sigmoid layer."""
        return keras.layers.Activation("sigmoid", **arguments)

    def decode(
        self, logits: tf.Tensor, labels: Sequence[str], fitted: Fitted
    ) -> dict[str, tf.Tensor]:
        """Decode logits in the graph.

        Returns:
            `probabilities` float32 [B, C], `chosen` bool [B, C], and `label` string [B]: the
            predicted labels joined by |.
        """
        probabilities = tf.sigmoid(tf.cast(logits, tf.float32))
        limits = np.broadcast_to(thresholds_of(fitted), len(labels))
        predicted = probabilities >= tf.constant(limits, tf.float32)
        # Prefix each predicted label with a separator, then remove the first separator.
        parts = tf.where(predicted, tf.constant([SEPARATOR + name for name in labels]), "")
        joined = tf.strings.regex_replace(tf.strings.reduce_join(parts, axis=1), r"^\|", "")
        return {"probabilities": probabilities, "chosen": predicted, "label": joined}

    def answer(self, outputs: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
        """Return the outputs of a row as `{"labels": [...], "probabilities": {label: p}}`."""
        chosen = zip(labels, outputs["chosen"], strict=True)
        return {
            "labels": [name for name, is_chosen in chosen if is_chosen],
            "probabilities": probabilities_by_label(outputs, labels),
        }

    def margin(
        self, outputs: Mapping[str, np.ndarray], fitted: Fitted, tokens: Any = None
    ) -> np.ndarray:
        """Return the distance of the probability that is nearest to its threshold, [N]."""
        return np.abs(outputs["probabilities"] - thresholds_of(fitted)).min(axis=1)


def thresholds_of(fitted: Fitted) -> Any:
    """Return the fitted thresholds, [C], or 0.5."""
    return fitted.get("thresholds", multilabel_metrics.DEFAULT_THRESHOLD)


def _to_logits(probabilities: np.ndarray) -> np.ndarray:
    """Convert probabilities to logits, float32."""
    # Probabilities of 0 and 1 would become infinite logits.
    p = np.clip(probabilities, 1e-7, 1 - 1e-7)
    return np.log(p / (1 - p)).astype(np.float32)


def _join(predicted: np.ndarray, labels: Sequence[str]) -> str:
    return SEPARATOR.join(
        name for name, is_predicted in zip(labels, predicted, strict=True) if is_predicted
    )
