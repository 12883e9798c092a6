"""One class for each row, whatever a row is: head, losses, weights, decoding."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfft.config import TaskConfig
from tfft.evaluation import metrics
from tfft.spec import Backbone, Details
from tfft.utils.errors import UserError, nearest


class Pooling(keras.layers.Layer):
    """One float32 vector [B, D] of the features.

    Args:
        kind: `pooled` takes [B, D] as it is, `first` the first token of [B, T, D], `mean` the
            mean over the tokens that are not padding. Also an attribute.
    """

    def __init__(self, kind: str, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.kind = kind

    def call(self, features, mask=None):
        """[B, D] or [B, T, D], and the mask [B, T] where rows are padded -> [B, D]."""
        x = ops.cast(features, "float32")
        if self.kind == "first":
            return x[:, 0]
        if self.kind == "mean" and mask is None:
            return ops.mean(x, axis=1)
        if self.kind == "mean":
            weights = ops.expand_dims(ops.cast(mask, "float32"), -1)  # LiteRT has no [:, :, None]
            return ops.sum(x * weights, axis=1) / ops.maximum(ops.sum(weights, axis=1), 1.0)
        return x


class ClassificationHead(keras.layers.Layer):
    """Perhaps a dense layer, dropout, logits; all in float32.

    Args:
        classes: C.
        activation: of a dense layer D -> D before the logits, None for no such layer.
        dropout: rate before the logits.
    """

    def __init__(self, classes: int, activation: str | None, dropout: float, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self._activation = activation
        self.logits = _dense(classes, None, "logits")
        self.dense: keras.layers.Dense | None = None
        self.dropout = keras.layers.Dropout(dropout, dtype="float32", name="dropout")

    def build(self, shape):
        """Create the dense layers."""
        width = shape[-1]
        if self._activation is not None:
            self.dense = _dense(width, self._activation, "dense")
            self.dense.build((None, width))
        self.logits.build((None, width))
        self.built = True

    def call(self, x, training: bool = False):
        """[B, D] -> logits [B, C]."""
        if self.dense is not None:
            x = self.dense(x)
        return self.logits(self.dropout(x, training=training))


def shares(y_true, y_pred):
    """The share of each class in each row, [B, C]: of class ids [B] or [B, 1], or as given."""
    if len(y_true.shape) == 2 and y_true.shape[-1] != 1:
        return ops.cast(y_true, "float32")
    return ops.one_hot(ops.cast(ops.reshape(y_true, [-1]), "int32"), ops.shape(y_pred)[-1])


def _dense(width: int, activation: str | None, name: str) -> keras.layers.Dense:
    # 0.02 is what these models' own heads begin with (Devlin et al. 2019, appendix A.2).
    small = keras.initializers.TruncatedNormal(stddev=0.02)
    return keras.layers.Dense(
        width, activation=activation, kernel_initializer=small, dtype="float32", name=name
    )


def head(
    backbone: Backbone, config: TaskConfig, labels: Sequence[str]
) -> Callable[[Mapping[str, keras.KerasTensor], keras.KerasTensor | None], keras.KerasTensor]:
    """A function: features by name and the padding mask -> logits [B, C].

    Raises:
        UserError: the backbone lacks the feature that is asked for.
    """
    style = backbone.head_style
    pooling = style.pooling if config.pooling == "auto" else config.pooling
    feature = "pooled" if pooling == "pooled" else "sequence"
    if feature not in backbone.features:
        raise UserError(
            f"task.pooling: the backbone has no {feature!r} feature; "
            f"it has {', '.join(backbone.features)}: use first or mean"
        )
    activation = style.activation if pooling == style.pooling else None
    pool = Pooling(pooling, name="pooling")
    made = ClassificationHead(len(labels), activation, config.dropout, name="head")

    def logits(
        features: Mapping[str, keras.KerasTensor], mask: keras.KerasTensor | None
    ) -> keras.KerasTensor:
        found = features[feature]
        return made(pool(found) if mask is None else pool(found, mask))

    return logits


class CrossEntropy(keras.losses.Loss):
    """Cross-entropy of integer classes, optionally smoothed or focal; one value a row.

    Smoothing: Szegedy et al. 2016, section 7, mixing with the uniform distribution. Focal: Lin
    et al. 2017, equation 4: (1 - p)^gamma before the logarithm, 0 being plain cross-entropy.
    """

    def __init__(self, label_smoothing: float = 0.0, gamma: float = 0.0, name: str = "loss"):
        # A sum over the batch divided by its rows: weights of a class scale its rows' share.
        super().__init__(name=name, reduction="sum_over_batch_size", dtype="float32")
        self.label_smoothing, self.gamma = label_smoothing, gamma

    def call(self, y_true, y_pred):
        """Class ids [B], or shares [B, C] of rows that were mixed; logits [B, C] -> [B]."""
        log_p = ops.log_softmax(ops.cast(y_pred, "float32"), axis=-1)
        target = shares(y_true, y_pred)
        chosen = ops.sum(log_p * target, axis=-1)
        loss = -chosen
        if self.gamma:
            # 1 - p from below 1 only: at p = 1 the power's gradient is not defined for gamma < 1.
            loss = loss * ops.power(ops.clip(-ops.expm1(chosen), 1e-7, 1.0), self.gamma)
        if self.label_smoothing:
            uniform = -ops.mean(log_p, axis=-1)
            loss = (1 - self.label_smoothing) * loss + self.label_smoothing * uniform
        return loss


class ProbabilityError(keras.losses.Loss):
    """An error of the probabilities against the one-hot class, summed over classes; one a row.

    `mse` is Brier's score (1950), a proper one: the probabilities stay calibrated. `huber`
    (Huber 1964) is e^2 / 2 within `delta` and delta * (|e| - delta / 2) beyond; `smooth_l1`
    (Girshick 2015) is that divided by `delta`.
    """

    def __init__(self, kind: str, delta: float, name: str = "loss"):
        super().__init__(name=name, reduction="sum_over_batch_size", dtype="float32")
        self.kind, self.delta = kind, delta

    def call(self, y_true, y_pred):
        """Class ids [B], or shares [B, C]; logits [B, C] -> [B]."""
        p = ops.softmax(ops.cast(y_pred, "float32"), axis=-1)
        target = shares(y_true, y_pred)
        error = ops.abs(p - target)
        if self.kind == "mse":
            return ops.sum(ops.square(error), axis=-1)
        square, straight = 0.5 * ops.square(error), self.delta * (error - 0.5 * self.delta)
        huber = ops.sum(ops.where(error <= self.delta, square, straight), axis=-1)
        return huber / self.delta if self.kind == "smooth_l1" else huber


def loss(config: TaskConfig) -> keras.losses.Loss:
    """What is minimised, one value a row."""
    if config.loss == "focal":
        return CrossEntropy(gamma=config.focal_gamma)
    if config.loss != "cross_entropy":
        return ProbabilityError(config.loss, config.delta)
    return CrossEntropy(label_smoothing=config.label_smoothing)


def sample_weights(config: TaskConfig, labels: Sequence[str], ids: np.ndarray) -> np.ndarray | None:
    """A weight for each class, or None.

    Raises:
        UserError: a class is named that there is not.
    """
    given = config.class_weights
    if given is None:
        return None
    if given == "balanced":
        counts = np.bincount(ids, minlength=len(labels))
        return len(ids) / (np.maximum(counts, 1) * np.count_nonzero(counts))
    unknown = [name for name in given if name not in labels]
    if unknown:
        raise UserError(
            f"task.class_weights: {unknown[0]!r} is not a class{nearest(unknown[0], labels)}"
        )
    return np.array([given.get(name, 1.0) for name in labels])


def to_logits(probabilities: np.ndarray) -> np.ndarray:
    """Logits, float32 [N, C]."""
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)).astype(np.float32)


def compute_metrics(
    logits: np.ndarray, ids: np.ndarray, thresholds: np.ndarray | None = None
) -> dict[str, float]:
    """The headline."""
    return metrics.headline(logits, ids)


def bootstrap(
    logits: np.ndarray,
    ids: np.ndarray,
    draws: int,
    seed: int,
    thresholds: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """The headline of bootstrap resamples."""
    return metrics.bootstrap(logits, ids, draws, seed)


def details(logits: np.ndarray, ids: np.ndarray, thresholds: np.ndarray | None = None) -> Details:
    """What is known of each class and of each row."""
    probabilities = metrics.softmax(logits)
    predicted = probabilities.argmax(axis=1)
    matrix = metrics.confusion(predicted, ids, logits.shape[1])
    by_class = metrics.from_confusion(matrix)

    def describe(at: int, labels: Sequence[str]) -> dict[str, Any]:
        about = int(predicted[at])
        return {
            "label": labels[ids[at]],
            "predicted": labels[about],
            "confidence": float(probabilities[at, about]),
            "about": about,
        }

    return Details(
        confusion=matrix,
        by_class={k: by_class[k] for k in ("precision", "recall", "f1", "support")},
        reliability=metrics.reliability(probabilities, ids),
        losses=metrics.log_losses(probabilities, ids),
        wrong=predicted != ids,
        describe=describe,
    )


def decode(
    logits: tf.Tensor, labels: Sequence[str], thresholds: np.ndarray | None = None
) -> dict[str, tf.Tensor]:
    """`probabilities` float32 [B, C] and `label` string [B]."""
    probabilities = tf.nn.softmax(tf.cast(logits, tf.float32))
    names = tf.gather(tf.constant(list(labels)), tf.argmax(logits, axis=-1))
    return {"probabilities": probabilities, "label": names}
