"""Heads that tasks share: from the features of a backbone to the logits of a row or its tokens."""

from collections.abc import Callable, Mapping

import keras

from tfft.backbones.pooling import feature_of, pool
from tfft.spec import Backbone
from tfft.utils.errors import UserError


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
            self.dense.build(shape)
        self.logits.build(shape)
        self.built = True

    def call(self, x, training: bool = False):
        """Compute logits [B, C] of features [B, D], or [B, T, C] of [B, T, D]."""
        if self.dense is not None:
            x = self.dense(x)
        return self.logits(self.dropout(x, training=training))


def _dense(width: int, activation: str | None, name: str) -> keras.layers.Dense:
    # BERT's initialisation of its heads (Devlin et al. 2019, appendix A.2).
    initializer = keras.initializers.TruncatedNormal(stddev=0.02)
    return keras.layers.Dense(
        width, activation=activation, kernel_initializer=initializer, dtype="float32", name=name
    )


def pooled_head(
    backbone: Backbone, pooling: str, dropout: float, outputs: int
) -> Callable[[Mapping[str, keras.KerasTensor], keras.KerasTensor | None], keras.KerasTensor]:
    """Build a head on one vector per row.

    Args:
        backbone: backbone whose features the head reads.
        pooling: `pooled`, `first`, `mean`, or `auto` for that of the checkpoint.
        dropout: dropout rate before the logits.
        outputs: number of logits per row, C.

    Returns:
        A function: features by name and padding mask (or None) -> logits [B, C].

    Raises:
        UserError: the backbone lacks the feature that the pooling needs.
    """
    style = backbone.head_style
    pooling = style.pooling if pooling == "auto" else pooling
    feature = feature_of(pooling)
    if feature not in backbone.features:
        raise UserError(
            f"task.pooling: the backbone has no {feature!r} feature; "
            f"it has {', '.join(backbone.features)}: use first or mean"
        )
    # The checkpoint's dense layer was trained on the checkpoint's pooling.
    activation = style.activation if pooling == style.pooling else None
    classification_head = ClassificationHead(outputs, activation, dropout, name="head")

    def logits(
        features: Mapping[str, keras.KerasTensor], mask: keras.KerasTensor | None
    ) -> keras.KerasTensor:
        return classification_head(pool(pooling, features, mask))

    return logits


def token_head(
    dropout: float, outputs: int
) -> Callable[[Mapping[str, keras.KerasTensor], keras.KerasTensor | None], keras.KerasTensor]:
    """Build a head on the vector of each token: dropout and a linear layer.

    Args:
        dropout: dropout rate before the logits.
        outputs: number of logits per token, C.

    Returns:
        A function: features by name and padding mask (or None) -> logits [B, T, C].
    """
    head = ClassificationHead(outputs, None, dropout, name="head")
    return lambda features, mask: head(features["sequence"])
