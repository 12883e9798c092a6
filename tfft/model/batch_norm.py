"""BatchNorm in fine-tuning: frozen statistics, or statistics computed from the new data.

The statistics of a pretrained model are part of its function. Batches of another kind or size
spoil them within a few steps (Kornblith et al. 2019, appendix; "BatchNorm" in Keras'
transfer-learning guide). So they are frozen by default: the layers normalise as in inference, also
where gamma and beta are trainable.
"""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from tfft.model.wrapping import Call, Order, wrap_call
from tfft.utils import keras_internals
from tfft.utils.errors import UserError


def layers(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """Return all BatchNorm layers of a model."""
    layer_type = keras.layers.BatchNormalization
    return [x for x in keras_internals.flat_layers(model) if isinstance(x, layer_type)]


def freeze(model: keras.Model) -> None:
    """Make every BatchNorm layer normalise with its stored statistics, also in training mode.

    Gamma and beta stay as trainable as the mask makes them.
    """
    for layer in layers(model):
        # Not `trainable`: a BatchNorm layer with `trainable = False` would freeze gamma and beta.
        wrap_call(layer, _in_inference, Order.FROZEN)
    for layer in keras_internals.flat_layers(model):
        if hasattr(layer, "frozen_statistics"):  # a SavedModel layer has its BatchNorm inside
            layer.frozen_statistics = True


def _in_inference(inner: Call) -> Call:
    def call(inputs: Any, training: Any = None, mask: Any = None) -> Any:
        return inner(inputs, training=False, mask=mask)

    return call


def adapt(model: keras.Model, batches: Iterable[Any]) -> None:
    """Set the statistics to those of `batches`, and adjust gamma and beta to keep the function.

    With mean m and variance v of a layer's inputs, old statistics m0 and v0, and epsilon e:
    gamma' = gamma sqrt((v + e) / (v0 + e)) and beta' = beta + gamma (m - m0) / sqrt(v0 + e). The
    output in inference does not change, and that in training mode on similar batches barely does.

    Args:
        model: changed in place. Layers without gamma or beta are left as they are.
        batches: inputs of the model.

    Raises:
        UserError: the model has no BatchNorm layer.
    """
    recorders = {id(layer): _MomentRecorder(layer) for layer in layers(model)}
    if not recorders:
        raise UserError(
            "train.batch_norm: adapt needs BatchNorm layers of Keras, and the model has none; "
            "those inside a SavedModel support frozen and train. Received: adapt"
        )
    for batch in batches:
        # Inference mode: every recorder sees what it would see with the old statistics, and `call`
        # runs eagerly, as the conversion to numpy below needs.
        model(batch, training=False)
    for recorder in recorders.values():
        recorder.assign()


class _MomentRecorder:
    """Wrapper around a layer's `call` that sums its inputs and their squares by channel."""

    def __init__(self, layer: keras.layers.BatchNormalization):
        self._layer = layer
        self._count, self._sum, self._squares = 0, 0.0, 0.0
        self._remove = wrap_call(layer, self._wrap, Order.RECORD)

    def _wrap(self, inner: Call) -> Call:
        self._original_call = inner
        return self

    def __call__(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        # float64, since the variance below is a difference of large sums.
        x = np.asarray(ops.convert_to_numpy(inputs), np.float64)
        axis = self._layer.axis % x.ndim
        x = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])  # [B * H * W, C]
        self._count += len(x)
        self._sum, self._squares = self._sum + x.sum(0), self._squares + (x**2).sum(0)
        return self._original_call(inputs, training=training, mask=mask)

    def assign(self) -> None:
        """Stop recording, and assign statistics, gamma and beta."""
        layer = self._layer
        self._remove()
        if not self._count:
            return
        mean = self._sum / self._count
        # The biased variance, E[x^2] - E[x]^2; rounding can make it slightly negative.
        variance = np.maximum(self._squares / self._count - mean**2, 0)
        old_mean = np.asarray(ops.convert_to_numpy(layer.moving_mean), np.float64)
        old_variance = np.asarray(ops.convert_to_numpy(layer.moving_variance), np.float64)
        epsilon = layer.epsilon
        gamma = np.ones_like(mean) if layer.gamma is None else ops.convert_to_numpy(layer.gamma)
        if layer.gamma is None or layer.beta is None:
            return  # only with both can the function be kept
        layer.beta.assign(
            ops.convert_to_numpy(layer.beta)
            + gamma * (mean - old_mean) / np.sqrt(old_variance + epsilon)
        )
        layer.gamma.assign(gamma * np.sqrt((variance + epsilon) / (old_variance + epsilon)))
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(variance)
