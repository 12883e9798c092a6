"""Single-label classification of texts or images: head, losses, weights, metrics, decoding."""

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
    """Pools features to one float32 vector [B, D] per row.

    Args:
        kind: `pooled` passes [B, D] through, `first` takes the first token of [B, T, D], `mean`
            averages the tokens that are not padding. Also an attribute.
    """

    def __init__(self, kind: str, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.kind = kind

    def call(self, features, mask=None):
        """Pool [B, D] or [B, T, D], with mask [B, T] where rows are padded, to [B, D]."""
        x = ops.cast(features, "float32")
        if self.kind == "first":
            return x[:, 0]
        if self.kind == "mean" and mask is None:
            return ops.mean(x, axis=1)
        if self.kind == "mean":
            # LiteRT does not support [:, :, None].
            weights = ops.expand_dims(ops.cast(mask, "float32"), -1)
            # A row of padding alone has no tokens to divide by.
            return ops.sum(x * weights, axis=1) / ops.maximum(ops.sum(weights, axis=1), 1.0)
        return x


class ClassificationHead(keras.layers.Layer):
    """An optional dense layer, dropout and a linear layer to the logits; all in float32.

    Args:
        classes: number of classes, C.
        activation: activation of a dense layer D -> D before the logits; None for no such layer.
        dropout: dropout rate before the logits.
    """

    def __init__(self, classes: int, activation: str | None, dropout: float, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self._activation = activation
        self.logits = _dense(classes, None, "logits")
        self.dense: keras.layers.Dense | None = None
        self.dropout = keras.layers.Dropout(dropout, dtype="float32", name="dropout")

    def build(self, shape):
        """Create the dense layers for features of width `shape[-1]`."""
        width = shape[-1]
        if self._activation is not None:
            self.dense = _dense(width, self._activation, "dense")
            self.dense.build((None, width))
        self.logits.build((None, width))
        self.built = True

    def call(self, x, training: bool = False):
        """Compute logits [B, C] of features [B, D]."""
        if self.dense is not None:
            x = self.dense(x)
        return self.logits(self.dropout(x, training=training))


def target_distribution(y_true, y_pred):
    """Return the target distribution of each row, [B, C].

    Class ids [B] or [B, 1] become one-hot; mixed targets [B, C] are passed through as float32.
    """
    # A single column is class ids, [B, 1], not a distribution.
    if len(y_true.shape) == 2 and y_true.shape[-1] != 1:
        return ops.cast(y_true, "float32")
    return ops.one_hot(ops.cast(ops.reshape(y_true, [-1]), "int32"), ops.shape(y_pred)[-1])


def _dense(width: int, activation: str | None, name: str) -> keras.layers.Dense:
    # BERT's initialisation of its heads (Devlin et al. 2019, appendix A.2).
    initializer = keras.initializers.TruncatedNormal(stddev=0.02)
    return keras.layers.Dense(
        width, activation=activation, kernel_initializer=initializer, dtype="float32", name=name
    )


def head(
    backbone: Backbone, config: TaskConfig, labels: Sequence[str]
) -> Callable[[Mapping[str, keras.KerasTensor], keras.KerasTensor | None], keras.KerasTensor]:
    """Build the head of a model.

    Args:
        backbone: backbone whose features the head reads.
        config: section `task`.
        labels: names of the classes.

    Returns:
        A function: features by name and padding mask (or None) -> logits [B, C].

    Raises:
        UserError: the backbone lacks the feature that `task.pooling` needs.
    """
    style = backbone.head_style
    pooling = style.pooling if config.pooling == "auto" else config.pooling
    feature = "pooled" if pooling == "pooled" else "sequence"
    if feature not in backbone.features:
        raise UserError(
            f"task.pooling: the backbone has no {feature!r} feature; "
            f"it has {', '.join(backbone.features)}: use first or mean"
        )
    # The checkpoint's dense layer was trained on the checkpoint's pooling.
    activation = style.activation if pooling == style.pooling else None
    pool = Pooling(pooling, name="pooling")
    classification_head = ClassificationHead(len(labels), activation, config.dropout, name="head")

    def logits(
        features: Mapping[str, keras.KerasTensor], mask: keras.KerasTensor | None
    ) -> keras.KerasTensor:
        pooling_input = features[feature]
        return classification_head(
            pool(pooling_input) if mask is None else pool(pooling_input, mask)
        )

    return logits


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


def loss(config: TaskConfig) -> keras.losses.Loss:
    """Build the loss of the config; it returns one value per row."""
    if config.loss == "focal":
        return CrossEntropy(gamma=config.focal_gamma)
    if config.loss != "cross_entropy":
        return ProbabilityError(config.loss, config.delta)
    return CrossEntropy(label_smoothing=config.label_smoothing)


def sample_weights(config: TaskConfig, labels: Sequence[str], ids: np.ndarray) -> np.ndarray | None:
    """Compute the weight of each class, [C], or None for equal weights.

    Raises:
        UserError: `task.class_weights` names an unknown class.
    """
    class_weights = config.class_weights
    if class_weights is None:
        return None
    if class_weights == "balanced":
        counts = np.bincount(ids, minlength=len(labels))
        # The mean weight of the rows is 1; classes without rows do not count.
        return len(ids) / (np.maximum(counts, 1) * np.count_nonzero(counts))
    unknown = [name for name in class_weights if name not in labels]
    if unknown:
        raise UserError(
            f"task.class_weights: {unknown[0]!r} is not a class{nearest(unknown[0], labels)}"
        )
    return np.array([class_weights.get(name, 1.0) for name in labels])


def to_logits(probabilities: np.ndarray) -> np.ndarray:
    """Convert probabilities to logits, float32 [N, C]."""
    # A probability of 0 would become -inf.
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)).astype(np.float32)


def compute_metrics(
    logits: np.ndarray, ids: np.ndarray, thresholds: np.ndarray | None = None
) -> dict[str, float]:
    """Compute the headline metrics; `thresholds` are not used."""
    return metrics.headline(logits, ids)


def bootstrap(
    logits: np.ndarray,
    ids: np.ndarray,
    draws: int,
    seed: int,
    thresholds: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Compute the headline metrics of bootstrap resamples; `thresholds` are not used."""
    return metrics.bootstrap(logits, ids, draws, seed)


def details(logits: np.ndarray, ids: np.ndarray, thresholds: np.ndarray | None = None) -> Details:
    """Compute metrics by class and losses by row; `thresholds` are not used."""
    probabilities = metrics.softmax(logits)
    predicted = probabilities.argmax(axis=1)
    matrix = metrics.confusion(predicted, ids, logits.shape[1])
    by_class = metrics.from_confusion(matrix)

    def describe(position: int, labels: Sequence[str]) -> dict[str, Any]:
        predicted_id = int(predicted[position])
        return {
            "label": labels[ids[position]],
            "predicted": labels[predicted_id],
            "confidence": float(probabilities[position, predicted_id]),
            "about": predicted_id,
        }

    return Details(
        confusion=matrix,
        by_class={k: by_class[k] for k in ("precision", "recall", "f1", "support")},
        reliability=metrics.reliability(probabilities, ids),
        losses=metrics.log_losses(probabilities, ids),
        wrong=predicted != ids,
        describe=describe,
    )


SUMMARY = "the probability of each class, and the most probable one"


def decode(
    logits: tf.Tensor, labels: Sequence[str], thresholds: np.ndarray | None = None
) -> dict[str, tf.Tensor]:
    """Return `probabilities` float32 [B, C] and `label` string [B]."""
    # float32, because TF Serving's REST API writes no half or bfloat16.
    probabilities = tf.nn.softmax(tf.cast(logits, tf.float32))
    names = tf.gather(tf.constant(list(labels)), tf.argmax(logits, axis=-1))
    return {"probabilities": probabilities, "label": names}


def answer(outputs: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """Return the outputs of a row as `{"label": ..., "probabilities": {label: p}}`."""
    return {
        "label": outputs["label"].decode("utf-8", "replace"),
        "probabilities": probabilities_by_label(outputs, labels),
    }


def probabilities_by_label(outputs: Mapping[str, Any], labels: Sequence[str]) -> dict[str, float]:
    """Return the probabilities of a row, label -> probability."""
    return {n: float(p) for n, p in zip(labels, outputs["probabilities"], strict=True)}


def margin(probabilities: np.ndarray, thresholds: np.ndarray | None = None) -> np.ndarray:
    """Return half the lead of the most probable class, [N]; `thresholds` are not used."""
    second, first = np.sort(probabilities, axis=1)[:, -2:].T
    return (first - second) / 2
