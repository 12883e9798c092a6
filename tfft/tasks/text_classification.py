"""One class for each text, or for each pair of texts."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfft import metrics
from tfft.config import TaskConfig
from tfft.errors import UserError, nearest
from tfft.spec import Backbone, Task


class ClassificationHead(keras.layers.Layer):
    """One vector of the features, perhaps a dense layer, dropout, logits; all in float32.

    Args:
        classes: C.
        pooling: `pooled` takes [B, D] as it is, `first` the first token of [B, T, D], `mean` the
            mean over the tokens that are not padding.
        activation: of a dense layer D -> D before the logits, None for no such layer.
        dropout: rate before the logits.
    """

    def __init__(
        self, classes: int, pooling: str, activation: str | None, dropout: float, **kwargs
    ):
        super().__init__(dtype="float32", **kwargs)
        self._pooling = pooling
        self._activation = activation
        # 0.02 is what these models' own heads begin with (Devlin et al. 2019, appendix A.2).
        small = keras.initializers.TruncatedNormal(stddev=0.02)
        self.logits = keras.layers.Dense(
            classes, kernel_initializer=small, dtype="float32", name="logits"
        )
        self.dense = None
        if activation is not None:
            self.dense = True  # its width is the input's, known in `build`
        self.dropout = keras.layers.Dropout(dropout, dtype="float32", name="dropout")

    def build(self, features_shape, mask_shape=None):
        """Create the dense layers."""
        width = features_shape[-1]
        if self.dense is True:
            self.dense = keras.layers.Dense(
                width,
                activation=self._activation,
                kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.02),
                dtype="float32",
                name="dense",
            )
            self.dense.build((None, width))
        self.logits.build((None, width))
        self.built = True

    def call(self, features, mask, training: bool = False):
        """[B, D] or [B, T, D], and the mask [B, T] -> logits [B, C]."""
        x = ops.cast(features, "float32")
        if self._pooling == "first":
            x = x[:, 0]
        elif self._pooling == "mean":
            weights = ops.cast(mask, "float32")[:, :, None]
            x = ops.sum(x * weights, axis=1) / ops.maximum(ops.sum(weights, axis=1), 1.0)
        if self.dense is not None:
            x = self.dense(x)
        return self.logits(self.dropout(x, training=training))


def _head(
    backbone: Backbone, config: TaskConfig, labels: Sequence[str]
) -> tuple[keras.layers.Layer, str]:
    style = backbone.head_style
    pooling = style.pooling if config.pooling == "auto" else config.pooling
    feature = "pooled" if pooling == "pooled" else "sequence"
    if feature not in backbone.features:
        raise UserError(
            f"task.pooling: the backbone has no {feature!r} feature; "
            f"it has {', '.join(backbone.features)}: use first or mean"
        )
    activation = style.activation if pooling == style.pooling else None
    head = ClassificationHead(len(labels), pooling, activation, config.dropout, name="head")
    return head, feature


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
        """Class ids [B], logits [B, C] -> [B]."""
        log_p = ops.log_softmax(ops.cast(y_pred, "float32"), axis=-1)
        target = ops.one_hot(ops.cast(ops.reshape(y_true, [-1]), "int32"), ops.shape(y_pred)[-1])
        chosen = ops.sum(log_p * target, axis=-1)
        loss = -chosen
        if self.gamma:
            # 1 - p from below 1 only: at p = 1 the power's gradient is not defined for gamma < 1.
            loss = loss * ops.power(ops.clip(-ops.expm1(chosen), 1e-7, 1.0), self.gamma)
        if self.label_smoothing:
            uniform = -ops.mean(log_p, axis=-1)
            loss = (1 - self.label_smoothing) * loss + self.label_smoothing * uniform
        return loss


def _loss(config: TaskConfig) -> keras.losses.Loss:
    if config.loss == "focal":
        return CrossEntropy(gamma=config.focal_gamma)
    return CrossEntropy(label_smoothing=config.label_smoothing)


def _sample_weights(
    config: TaskConfig, labels: Sequence[str], ids: np.ndarray
) -> np.ndarray | None:
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


def _decode(logits: tf.Tensor, labels: Sequence[str]) -> dict[str, tf.Tensor]:
    """`probabilities` float32 [B, C] and `label` string [B]."""
    probabilities = tf.nn.softmax(tf.cast(logits, tf.float32))
    names = tf.gather(tf.constant(list(labels)), tf.argmax(logits, axis=-1))
    return {"probabilities": probabilities, "label": names}


TASK = Task(
    name="text_classification",
    columns=("text", "text_pair"),
    head=_head,
    loss=_loss,
    sample_weights=_sample_weights,
    metrics=metrics.headline,
    resampled=metrics.resampled,
    decode=_decode,
)
