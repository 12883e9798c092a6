"""Convert gRPC's TensorProtos to arrays."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfft.serve.failure import Failure, TooLarge, invalid
from tfft.serve.loaded import Arrays

STRING_BYTES = 24  # of a tensor's string, besides a long string's letters


def arrays(protos: Mapping[str, Any], most_bytes: int) -> Arrays:
    """Return the arrays of a request, of which all together may take `most_bytes`.

    A message may declare more elements than it has values; the last value fills the others. So
    the shape is compared with the values before anything is allocated.

    Raises:
        Failure: one is no tensor, or they are too large.
    """
    size = 0
    for name, proto in protos.items():
        size += _bytes(name, proto)
        if size > most_bytes:
            raise TooLarge(
                f"input {name}: its shape {[d.size for d in proto.tensor_shape.dim]} declares more "
                f"elements than {most_bytes:,} bytes hold"
            )
    return {name: _array(name, proto) for name, proto in protos.items()}


def _bytes(name: str, proto: Any) -> int:
    """Return the bytes that a tensor takes."""
    sizes = [d.size for d in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or min(sizes, default=0) < 0:
        raise _no_tensor(name)
    elements = math.prod(sizes)
    if proto.dtype == tf.string.as_datatype_enum:
        values = proto.string_val
        filled = max(elements - len(values), 0) * (len(values[-1]) if values else 0)
        return elements * STRING_BYTES + proto.ByteSize() + filled
    try:
        return elements * tf.dtypes.as_dtype(proto.dtype).size
    except (TypeError, KeyError):
        raise _no_tensor(name) from None


def _array(name: str, proto: Any) -> np.ndarray:
    try:
        array: np.ndarray = tf.make_ndarray(proto)
    except Exception:  # numpy and TensorFlow raise many kinds for shapes and types
        raise _no_tensor(name) from None
    return array


def _no_tensor(name: str) -> Failure:
    return invalid(f"tensor parsing error: {name}")
