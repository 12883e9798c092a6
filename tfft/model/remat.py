"""Rematerialisation: recompute activations in the backward pass instead of storing them.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost". `keras.RematScope` fails within
`fit` on TensorFlow (its gradient takes keyword arguments in a graph), and its dropout would draw
another mask when recomputed. Here the seeds are drawn once and passed to both computations.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tfft.model import seeds
from tfft.model.wrapping import Call, Order, wrap_call
from tfft.spec import Stage
from tfft.utils import keras_internals


def rematerialise(model: keras.Model, stages: Sequence[Stage]) -> list[str]:
    """Rematerialise every layer whose variables all belong to one of `stages`.

    Of nested layers only the outermost is wrapped, so that its output alone is stored. A layer
    whose call has no argument `training`, such as a norm, cannot be wrapped.

    Returns:
        The names of the wrapped layers, in order.
    """
    names: list[str] = []
    for layer in _outermost_layers(model, [re.compile(stage.pattern) for stage in stages]):
        wrap_call(layer, partial(_rematerialised_call, layer), Order.REMAT)
        names.append(layer.name)
    return names


def _outermost_layers(parent: keras.layers.Layer, patterns: Sequence[re.Pattern]) -> list[Any]:
    layers = []
    for child in keras_internals.sublayers(parent):
        paths = [v.path for v in child.weights]
        # A layer without variables has no stage: its output is stored.
        is_in_stage = paths and any(all(p.match(path) for path in paths) for p in patterns)
        if is_in_stage and keras_internals.calls_with_training(child):
            layers.append(child)
        else:
            layers += _outermost_layers(child, patterns)
    return layers


def _rematerialised_call(layer: keras.layers.Layer, original_call: Call) -> Call:
    """Return a layer's `call` with its activations recomputed in the backward pass."""

    def call(*args: Any, training: bool = False, **kwargs: Any) -> Any:
        if not training:
            return original_call(*args, training=training, **kwargs)
        # `tf.recompute_grad` takes positional tensors only, in a graph: a custom gradient there
        # refuses keyword arguments. So tensors are pulled out of the structure and put back inside.
        flat = tree.flatten((args, kwargs))
        tensor_indices = [i for i, value in enumerate(flat) if tf.is_tensor(value)]
        # Drawn outside of `forward`, which runs twice and must drop the same units both times.
        layer_seeds = seeds.draw(layer)

        def forward(*inputs: tf.Tensor) -> Any:
            tensors, drawn = inputs[: len(tensor_indices)], inputs[len(tensor_indices) :]
            values = list(flat)
            for i, tensor in zip(tensor_indices, tensors, strict=True):
                values[i] = tensor
            inner_args, inner_kwargs = tree.pack_sequence_as((args, kwargs), values)
            with seeds.use(layer, drawn):
                return original_call(*inner_args, training=True, **inner_kwargs)

        return tf.recompute_grad(forward)(*(flat[i] for i in tensor_indices), *layer_seeds)

    return call
