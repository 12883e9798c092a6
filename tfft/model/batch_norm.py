"""BatchNorm while fine-tuning: whether its statistics are kept, trained, or set anew.

A pretrained model's statistics are part of what it knows; batches of another kind or size spoil
them within a few steps (Kornblith et al. 2019, appendix; "BatchNorm" in Keras' transfer-learning
guide). So they are frozen by default: the layers normalise as in inference, whatever moves.
"""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from tfft.utils.errors import UserError


def layers(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """All BatchNorm layers of a model."""
    kind = keras.layers.BatchNormalization
    return [layer for layer in model._flatten_layers() if isinstance(layer, kind)]


def freeze(model: keras.Model) -> None:
    """Let every BatchNorm normalise as in inference; gamma and beta move as the mask says."""
    for layer in layers(model):
        original = layer.call

        def call(inputs: Any, training: Any = None, mask: Any = None, original=original) -> Any:
            return original(inputs, training=False, mask=mask)

        layer.call = call
    for layer in model._flatten_layers():
        if hasattr(layer, "keep_statistics"):  # a SavedModel has its BatchNorm inside
            layer.keep_statistics = True


def adapt(model: keras.Model, batches: Iterable[Any]) -> None:
    """Set the statistics to those of some data, and gamma and beta so that the function stays.

    With mean m and variance v of a layer's inputs, gamma' = gamma sqrt((v + e) / (v0 + e)) and
    beta' = beta + gamma (m - m0) / sqrt(v0 + e), so that what it puts out in inference is the same,
    and in training mode, on like batches, nearly so.

    Raises:
        UserError: the model has no such layer.
    """
    found = {id(layer): _Moments(layer) for layer in layers(model)}
    if not found:
        raise UserError(
            "train.batch_norm: adapt needs BatchNorm layers of Keras; the model has none (those "
            "inside of a SavedModel can be frozen or train)"
        )
    for batch in batches:
        model(batch, training=False)
    for moments in found.values():
        moments.set()


class _Moments:
    """Sums up a layer's inputs while it is called, for each channel."""

    def __init__(self, layer: keras.layers.BatchNormalization):
        self._layer, self._original = layer, layer.call
        self._count, self._sum, self._squares = 0, 0.0, 0.0
        layer.call = self

    def __call__(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        x = np.asarray(ops.convert_to_numpy(inputs), np.float64)
        axis = self._layer.axis % x.ndim
        x = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])
        self._count += len(x)
        self._sum, self._squares = self._sum + x.sum(0), self._squares + (x**2).sum(0)
        return self._original(inputs, training=training, mask=mask)

    def set(self) -> None:
        layer = self._layer
        layer.call = self._original
        if not self._count:
            return
        mean = self._sum / self._count
        variance = np.maximum(self._squares / self._count - mean**2, 0)
        before_mean = np.asarray(ops.convert_to_numpy(layer.moving_mean), np.float64)
        before = np.asarray(ops.convert_to_numpy(layer.moving_variance), np.float64)
        epsilon = layer.epsilon
        gamma = np.ones_like(mean) if layer.gamma is None else ops.convert_to_numpy(layer.gamma)
        if layer.gamma is None or layer.beta is None:
            return  # without both the function could not stay
        layer.beta.assign(
            ops.convert_to_numpy(layer.beta)
            + gamma * (mean - before_mean) / np.sqrt(before + epsilon)
        )
        layer.gamma.assign(gamma * np.sqrt((variance + epsilon) / (before + epsilon)))
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(variance)
