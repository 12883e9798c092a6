"""Any number of tags for each row, whatever a row is: losses, figures, decoding.

A tag is chosen where its probability reaches its threshold: 0.5 until thresholds are tuned on the
validation rows.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfft.config import TaskConfig
from tfft.evaluation import multilabel_metrics
from tfft.spec import Details

BETWEEN = "|"  # tags of one row, as they stand in a table


class TagCrossEntropy(keras.losses.Loss):
    """Binary cross-entropy, the mean over tags, optionally smoothed or focal; one value a row.

    Smoothing moves 0 and 1 towards a half. Focal: Lin et al. 2017, equation 4: (1 - p)^gamma
    before the logarithm, p being the probability of what is true.
    """

    def __init__(self, label_smoothing: float = 0.0, gamma: float = 0.0, name: str = "loss"):
        super().__init__(name=name, reduction="sum_over_batch_size", dtype="float32")
        self.label_smoothing, self.gamma = label_smoothing, gamma

    @staticmethod
    def target_width(classes: int) -> int:
        """Numbers of a row's target."""
        return classes

    def call(self, y_true, y_pred):
        """0 or 1 [B, C], or between where rows were mixed; logits [B, C] -> [B]."""
        x, y = ops.cast(y_pred, "float32"), ops.cast(y_true, "float32")
        y = y * (1 - self.label_smoothing) + self.label_smoothing / 2
        yes, no = ops.softplus(-x), ops.softplus(x)  # -log p, -log (1 - p)
        if self.gamma:
            p = ops.sigmoid(x)
            # From above 0 only: at 0 the power's gradient is not defined for gamma < 1.
            yes = yes * ops.power(ops.clip(1 - p, 1e-7, 1.0), self.gamma)
            no = no * ops.power(ops.clip(p, 1e-7, 1.0), self.gamma)
        return ops.mean(y * yes + (1 - y) * no, axis=-1)


def loss(config: TaskConfig) -> keras.losses.Loss:
    """What is minimised, one value a row."""
    if config.loss == "focal":
        return TagCrossEntropy(gamma=config.focal_gamma)
    return TagCrossEntropy(label_smoothing=config.label_smoothing)


def no_weights(config: TaskConfig, labels: Sequence[str], truth: np.ndarray) -> None:
    """A row with several tags has no weight of a class."""


def to_logits(probabilities: np.ndarray) -> np.ndarray:
    """Logits, float32 [N, C]."""
    p = np.clip(probabilities, 1e-7, 1 - 1e-7)
    return np.log(p / (1 - p)).astype(np.float32)


def chosen(probabilities: np.ndarray, thresholds: np.ndarray | None) -> np.ndarray:
    """Which tags are, bool [N, C]."""
    return probabilities >= (multilabel_metrics.HALF if thresholds is None else thresholds)


def compute_metrics(
    logits: np.ndarray, truth: np.ndarray, thresholds: np.ndarray | None = None
) -> dict[str, float]:
    """The headline."""
    p = multilabel_metrics.sigmoid(logits)
    return multilabel_metrics.headline(p, truth, chosen(p, thresholds))


def bootstrap(
    logits: np.ndarray,
    truth: np.ndarray,
    draws: int,
    seed: int,
    thresholds: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """The headline of bootstrap resamples."""
    p = multilabel_metrics.sigmoid(logits)
    return multilabel_metrics.bootstrap(p, truth, chosen(p, thresholds), draws, seed)


def details(logits: np.ndarray, truth: np.ndarray, thresholds: np.ndarray | None = None) -> Details:
    """What is known of each tag and of each row."""
    p = multilabel_metrics.sigmoid(logits)
    yes, ones = chosen(p, thresholds), np.ones(len(truth))
    counts = multilabel_metrics.from_counts(multilabel_metrics.by_tag(yes, truth, ones))
    limits = np.broadcast_to(
        multilabel_metrics.HALF if thresholds is None else thresholds, p.shape[1:]
    )
    off = np.abs(p - truth)

    def describe(at: int, labels: Sequence[str]) -> dict[str, Any]:
        worst = int(off[at].argmax())
        return {
            "label": _joined(truth[at] > 0, labels),
            "predicted": _joined(yes[at], labels),
            "confidence": float(p[at, worst]),
            "about": worst,
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
        wrong=(yes != (truth > 0)).any(axis=1),
        describe=describe,
    )


def fit_thresholds(logits: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The thresholds that give the highest F1 on these rows."""
    return multilabel_metrics.thresholds(multilabel_metrics.sigmoid(logits), truth)


def decode(
    logits: tf.Tensor, labels: Sequence[str], thresholds: np.ndarray | None = None
) -> dict[str, tf.Tensor]:
    """`probabilities` float32 [B, C], `chosen` bool [B, C], and `label` string [B]: the chosen
    tags with | between them."""
    probabilities = tf.sigmoid(tf.cast(logits, tf.float32))
    limits = np.broadcast_to(
        multilabel_metrics.HALF if thresholds is None else thresholds, len(labels)
    )
    yes = probabilities >= tf.constant(limits, tf.float32)
    # A separator before each chosen tag; the first one is cut off.
    parts = tf.where(yes, tf.constant([BETWEEN + name for name in labels]), "")
    joined = tf.strings.regex_replace(tf.strings.reduce_join(parts, axis=1), r"^\|", "")
    return {"probabilities": probabilities, "chosen": yes, "label": joined}


def _joined(yes: np.ndarray, labels: Sequence[str]) -> str:
    return BETWEEN.join(name for name, one in zip(labels, yes, strict=True) if one)
