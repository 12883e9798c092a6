"""Rematerialisation: activations of some layers are computed again instead of kept.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost". `keras.RematScope` fails within
`fit` on TensorFlow (its gradient takes keyword arguments in a graph), and a layer with dropout
would draw another mask the second time; here the seeds are drawn once and handed in.
"""

import re
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tfft.model import seeds
from tfft.spec import Stage


def rematerialise(model: keras.Model, stages: Sequence[Stage]) -> list[str]:
    """Let every layer whose variables all lie in one of `stages` forget its activations.

    Of nested layers the outermost does. Returns the layers' names, in order.
    """
    found: list[str] = []
    for layer in _outermost(model, [re.compile(stage.pattern) for stage in stages]):
        layer.call = _recomputing(layer)
        found.append(layer.name)
    return found


def _outermost(parent: keras.layers.Layer, patterns: Sequence[re.Pattern]) -> list[Any]:
    layers = []
    for child in parent._layers:
        paths = [v.path for v in child.weights]
        if paths and any(all(p.match(path) for path in paths) for p in patterns):
            layers.append(child)
        else:
            layers += _outermost(child, patterns)
    return layers


def _recomputing(layer: keras.layers.Layer) -> Any:
    original = layer.call

    def call(*args: Any, training: bool = False, **kwargs: Any) -> Any:
        if not training:
            return original(*args, training=training, **kwargs)
        flat = tree.flatten((args, kwargs))
        at = [i for i, value in enumerate(flat) if tf.is_tensor(value)]
        drawn = seeds.draw(layer)

        def forward(*inputs: tf.Tensor) -> Any:
            tensors, given = inputs[: len(at)], inputs[len(at) :]
            values = list(flat)
            for i, tensor in zip(at, tensors, strict=True):
                values[i] = tensor
            inner_args, inner_kwargs = tree.pack_sequence_as((args, kwargs), values)
            with seeds.given(layer, given):
                return original(*inner_args, training=True, **inner_kwargs)

        return tf.recompute_grad(forward)(*(flat[i] for i in at), *drawn)

    return call
