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
from tfft.evaluation import multilabel_metrics
from tfft.spec import Details
from tfft.tasks import classification

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


def loss(config: TaskConfig) -> keras.losses.Loss:
    """Build the loss of the config; it returns one value per row."""
    if config.loss == "focal":
        return BinaryCrossEntropy(gamma=config.focal_gamma)
    return BinaryCrossEntropy(label_smoothing=config.label_smoothing)


def no_weights(config: TaskConfig, labels: Sequence[str], truth: np.ndarray) -> None:
    """Return None: a row with several labels has no class weight."""


def to_logits(probabilities: np.ndarray) -> np.ndarray:
    """Convert probabilities to logits, float32 [N, C]."""
    # Probabilities of 0 and 1 would become infinite logits.
    p = np.clip(probabilities, 1e-7, 1 - 1e-7)
    return np.log(p / (1 - p)).astype(np.float32)


def predict_labels(probabilities: np.ndarray, thresholds: np.ndarray | None) -> np.ndarray:
    """Return the predicted labels, bool [N, C]; thresholds default to 0.5."""
    return probabilities >= (
        multilabel_metrics.DEFAULT_THRESHOLD if thresholds is None else thresholds
    )


def compute_metrics(
    logits: np.ndarray, truth: np.ndarray, thresholds: np.ndarray | None = None
) -> dict[str, float]:
    """Compute the headline metrics."""
    p = multilabel_metrics.sigmoid(logits)
    return multilabel_metrics.headline(p, truth, predict_labels(p, thresholds))


def bootstrap(
    logits: np.ndarray,
    truth: np.ndarray,
    draws: int,
    seed: int,
    thresholds: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Compute the headline metrics of bootstrap resamples, each [draws]."""
    p = multilabel_metrics.sigmoid(logits)
    return multilabel_metrics.bootstrap(p, truth, predict_labels(p, thresholds), draws, seed)


def details(logits: np.ndarray, truth: np.ndarray, thresholds: np.ndarray | None = None) -> Details:
    """Compute metrics by label and losses by row."""
    p = multilabel_metrics.sigmoid(logits)
    predicted, ones = predict_labels(p, thresholds), np.ones(len(truth))
    counts = multilabel_metrics.from_counts(multilabel_metrics.by_label(predicted, truth, ones))
    limits = np.broadcast_to(
        multilabel_metrics.DEFAULT_THRESHOLD if thresholds is None else thresholds, p.shape[1:]
    )
    error = np.abs(p - truth)

    def describe(position: int, labels: Sequence[str]) -> dict[str, Any]:
        # The label with the largest error is the one to explain.
        worst_label = int(error[position].argmax())
        return {
            "label": _join(truth[position] > 0, labels),
            "predicted": _join(predicted[position], labels),
            "confidence": float(p[position, worst_label]),
            "about": worst_label,
        }

    return Details(
        confusion=None,
        by_class={
            **{name: counts[name] for name in ("precision", "recall", "f1")},
            "average_precision": multilabel_metrics.Ranking(p, truth).average_precision(ones),
            "threshold": np.array(limits, np.float64),
            "support": truth.sum(axis=0),
        },
        reliability=multilabel_metrics.reliability(p, truth),
        losses=multilabel_metrics.log_losses(p, truth),
        wrong=(predicted != (truth > 0)).any(axis=1),
        describe=describe,
    )


def fit_thresholds(logits: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the threshold of each label with the highest F1 on these rows, [C]."""
    return multilabel_metrics.thresholds(multilabel_metrics.sigmoid(logits), truth)


SUMMARY = "the probability of each label, and the labels that reach their threshold"


def decode(
    logits: tf.Tensor, labels: Sequence[str], thresholds: np.ndarray | None = None
) -> dict[str, tf.Tensor]:
    """Decode logits in the graph.

    Returns:
        `probabilities` float32 [B, C], `chosen` bool [B, C], and `label` string [B]: the predicted
        labels joined by |.
    """
    probabilities = tf.sigmoid(tf.cast(logits, tf.float32))
    limits = np.broadcast_to(
        multilabel_metrics.DEFAULT_THRESHOLD if thresholds is None else thresholds, len(labels)
    )
    predicted = probabilities >= tf.constant(limits, tf.float32)
    # Prefix each predicted label with a separator, then remove the first separator.
    parts = tf.where(predicted, tf.constant([SEPARATOR + name for name in labels]), "")
    joined = tf.strings.regex_replace(tf.strings.reduce_join(parts, axis=1), r"^\|", "")
    return {"probabilities": probabilities, "chosen": predicted, "label": joined}


def answer(outputs: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """Return the outputs of a row as `{"labels": [...], "probabilities": {label: p}}`."""
    chosen = zip(labels, outputs["chosen"], strict=True)
    return {
        "labels": [name for name, is_chosen in chosen if is_chosen],
        "probabilities": classification.probabilities_by_label(outputs, labels),
    }


def margin(probabilities: np.ndarray, thresholds: np.ndarray | None) -> np.ndarray:
    """Return the distance of the probability that is nearest to its threshold, [N]."""
    limits = multilabel_metrics.DEFAULT_THRESHOLD if thresholds is None else thresholds
    return np.abs(probabilities - limits).min(axis=1)


def _join(predicted: np.ndarray, labels: Sequence[str]) -> str:
    return SEPARATOR.join(
        name for name, is_predicted in zip(labels, predicted, strict=True) if is_predicted
    )
