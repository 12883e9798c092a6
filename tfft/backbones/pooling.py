"""From the features of a backbone to one vector per row."""

from collections.abc import Mapping

import keras
from keras import ops


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


def feature_of(kind: str) -> str:
    """Return the name of the feature that a kind of pooling reads."""
    return "pooled" if kind == "pooled" else "sequence"


def pool(
    kind: str,
    features: Mapping[str, keras.KerasTensor],
    mask: keras.KerasTensor | None,
    name: str = "pooling",
) -> keras.KerasTensor:
    """Return a vector per row, [B, D].

    Args:
        kind: as in `Pooling`.
        features: those of a backbone, by name.
        mask: padding mask [B, T], or None.
        name: of the layer.
    """
    layer, x = Pooling(kind, name=name), features[feature_of(kind)]
    return layer(x) if mask is None else layer(x, mask)
