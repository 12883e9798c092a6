"""Store the weights of an export in fewer bits; the graph casts them to float32 and computes in it.

`float16` and `bfloat16` round each weight. `int8` is symmetric linear quantization with one scale
per row or per column, whichever has the smaller squared error (Jacob et al. 2018, section 2.1,
without a zero point). Vectors and small weights stay float32.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from tfft.utils import keras_internals
from tfft.utils.errors import UserError

MIN_ELEMENTS = 1024  # smaller weights stay float32: they save little and are often sensitive


@dataclass(frozen=True)
class StoredWeight:
    """A weight of the model and the tensors that the export stores for it.

    Attributes:
        variable: the weight, float32.
        parts: the variables that are saved in its place: the values, and for int8 their scale.
        value: returns the weight restored from `parts`, float32; traced into the graph.
    """

    variable: keras.Variable
    parts: tuple[tf.Variable, ...]
    value: Callable[[], tf.Tensor]

    @property
    def size(self) -> int:
        """Number of bytes that `parts` take."""
        return sum(int(np.prod(part.shape)) * part.dtype.size for part in self.parts)


@contextmanager
def rounded_weights(model: keras.Model, kind: str) -> Iterator[list[StoredWeight]]:
    """Round the model's weights to their stored form within the context, and restore them after it.

    The live model then computes exactly what the export computes, so the two can be compared.

    Args:
        model: the model to export.
        kind: `float32` (changes nothing), `float16`, `bfloat16` or `int8`.

    Yields:
        The weights that are stored in another form; empty for `float32`.

    Raises:
        UserError: `kind` is unknown, or a layer of the model wraps a SavedModel, whose weights
            cannot be replaced.
    """
    if kind == "float32":
        yield []
        return
    if kind not in _ENCODERS:
        valid = ", ".join(("float32", *_ENCODERS))
        raise UserError(f"export.weight_dtype: must be one of {valid}. Received: {kind!r}")
    if any(hasattr(layer, "saved") for layer in keras_internals.flat_layers(model)):
        raise UserError(
            f"export.weight_dtype: must be float32 with a hub: backbone. Received: {kind}"
        )
    variables = [v for v in model.weights if _is_large_matrix(v)]
    original_values = [v.numpy() for v in variables]
    stored = [_ENCODERS[kind](variable) for variable in variables]
    try:
        for weight in stored:
            weight.variable.assign(weight.value())
        yield stored
    finally:
        for variable, value in zip(variables, original_values, strict=True):
            variable.assign(value)


def _is_large_matrix(variable: keras.Variable) -> bool:
    large = len(variable.shape) >= 2 and int(np.prod(variable.shape)) >= MIN_ELEMENTS
    return large and variable.dtype == "float32"


def _cast_weight(variable: keras.Variable, dtype: tf.DType) -> StoredWeight:
    part = tf.Variable(tf.cast(variable.value, dtype), trainable=False)
    return StoredWeight(variable, (part,), lambda: tf.cast(part, tf.float32))


def _quantize_weight(variable: keras.Variable) -> StoredWeight:
    """Return a weight as int8 with a scale per output row or column, whichever is more exact."""
    value = variable.numpy()
    # All axes but the first: a scale per row. All but the last: a scale per column.
    axes = (tuple(range(1, value.ndim)), tuple(range(value.ndim - 1)))
    codes, scale = min(
        (_quantize(value, axis) for axis in axes), key=lambda c: _squared_error(value, *c)
    )
    parts = tf.Variable(codes, trainable=False), tf.Variable(scale, trainable=False)
    return StoredWeight(variable, parts, lambda: tf.cast(parts[0], tf.float32) * parts[1])


def _quantize(value: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the int8 codes and the float32 scales, one scale shared along `axes`."""
    # Codes from -127 to 127: symmetric, without -128.
    scale = np.abs(value).max(axis=axes, keepdims=True).astype(np.float32) / 127
    scale[scale == 0] = 1  # all weights are zero; avoids a division by zero
    return np.rint(value / scale).astype(np.int8), scale


def _squared_error(value: np.ndarray, codes: np.ndarray, scale: np.ndarray) -> float:
    return float(np.square(codes.astype(np.float32) * scale - value).sum())


_ENCODERS: Mapping[str, Callable[[keras.Variable], StoredWeight]] = {
    "float16": lambda variable: _cast_weight(variable, tf.float16),
    "bfloat16": lambda variable: _cast_weight(variable, tf.bfloat16),
    "int8": _quantize_weight,
}
