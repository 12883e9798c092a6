"""Weights stored in fewer bits; the graph makes float32 of them again, and computes in that.

`float16` and `bfloat16` are rounded; `int8` is symmetric, with a scale for each row or each column,
whichever is nearer (Jacob et al. 2018, section 2.1, without a zero point). What has one axis, or
few numbers, stays as it is.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from tfft.utils.errors import UserError

LEAST = 1024  # numbers of a weight that is stored otherwise


@dataclass(frozen=True)
class StoredWeight:
    """A weight as it is saved.

    Attributes:
        variable: of the model.
        parts: what is saved in its place.
        value: in the graph, the parts as float32.
    """

    variable: keras.Variable
    parts: tuple[tf.Variable, ...]
    value: Callable[[], tf.Tensor]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(int(np.prod(part.shape)) * part.dtype.size for part in self.parts)


@contextmanager
def rounded(model: keras.Model, kind: str) -> Iterator[list[StoredWeight]]:
    """Within: the model's weights are what their stored form gives; afterwards what they were.

    Raises:
        UserError: there is no such form, or a part of the model is a SavedModel, whose weights are
            its own.
    """
    if kind == "float32":
        yield []
        return
    if kind not in _MADE:
        known = ", ".join(("float32", *_MADE))
        raise UserError(f"export.weight_dtype: must be one of {known}; received {kind!r}")
    if any(hasattr(layer, "saved") for layer in model._flatten_layers()):
        raise UserError(
            f"export.weight_dtype: {kind} does not go with hub: backbones, received one"
        )
    chosen = [v for v in model.weights if _worth(v)]
    before = [v.numpy() for v in chosen]
    stored = [_MADE[kind](variable) for variable in chosen]
    try:
        for one in stored:
            one.variable.assign(one.value())
        yield stored
    finally:
        for variable, value in zip(chosen, before, strict=True):
            variable.assign(value)


def _worth(variable: keras.Variable) -> bool:
    whole = len(variable.shape) >= 2 and int(np.prod(variable.shape)) >= LEAST
    return whole and variable.dtype == "float32"


def _half(variable: keras.Variable, dtype: tf.DType) -> StoredWeight:
    part = tf.Variable(tf.cast(variable.value, dtype), trainable=False)
    return StoredWeight(variable, (part,), lambda: tf.cast(part, tf.float32))


def _int8(variable: keras.Variable) -> StoredWeight:
    value = variable.numpy()
    axes = (tuple(range(1, value.ndim)), tuple(range(value.ndim - 1)))
    codes, scale = min((_coded(value, axis) for axis in axes), key=lambda c: _error(value, *c))
    parts = tf.Variable(codes, trainable=False), tf.Variable(scale, trainable=False)
    return StoredWeight(variable, parts, lambda: tf.cast(parts[0], tf.float32) * parts[1])


def _coded(value: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales; a scale for what is left when `axes` are taken together."""
    scale = np.abs(value).max(axis=axes, keepdims=True).astype(np.float32) / 127
    scale[scale == 0] = 1
    return np.rint(value / scale).astype(np.int8), scale


def _error(value: np.ndarray, codes: np.ndarray, scale: np.ndarray) -> float:
    return float(np.square(codes.astype(np.float32) * scale - value).sum())


_MADE: Mapping[str, Callable[[keras.Variable], StoredWeight]] = {
    "float16": lambda variable: _half(variable, tf.float16),
    "bfloat16": lambda variable: _half(variable, tf.bfloat16),
    "int8": _int8,
}
