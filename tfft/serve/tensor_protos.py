"""Convert the TensorProtos of gRPC requests to arrays."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfft.serve.failure import Failure, TooLarge, invalid
from tfft.serve.loaded import Arrays

STRING_OVERHEAD = 24  # bytes per string of a tensor, besides the characters of a long one


def arrays(protos: Mapping[str, Any], max_bytes: int) -> Arrays:
    """Return the arrays of a request.

    A message may declare more elements than it has values: the last value fills the others. A
    small message could thus allocate any amount of memory, so sizes are checked first.

    Args:
        protos: input name -> TensorProto.
        max_bytes: largest memory of all arrays together.

    Raises:
        Failure: a message is not a valid tensor, or the arrays would be too large.
    """
    size = 0
    for name, proto in protos.items():
        size += _num_bytes(name, proto)
        if size > max_bytes:
            raise TooLarge(
                f"input {name}: its shape {[d.size for d in proto.tensor_shape.dim]} declares more "
                f"elements than {max_bytes:,} bytes hold"
            )
    return {name: _array(name, proto) for name, proto in protos.items()}


def _num_bytes(name: str, proto: Any) -> int:
    """Return the memory that a tensor takes, in bytes."""
    sizes = [d.size for d in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or min(sizes, default=0) < 0:
        raise _parsing_error(name)
    num_elements = math.prod(sizes)
    if proto.dtype == tf.string.as_datatype_enum:
        values = proto.string_val
        fill_bytes = max(num_elements - len(values), 0) * (len(values[-1]) if values else 0)
        return num_elements * STRING_OVERHEAD + proto.ByteSize() + fill_bytes
    try:
        return num_elements * tf.dtypes.as_dtype(proto.dtype).size
    except (TypeError, KeyError):
        raise _parsing_error(name) from None


def _array(name: str, proto: Any) -> np.ndarray:
    try:
        array: np.ndarray = tf.make_ndarray(proto)
    except Exception:  # NumPy and TensorFlow raise many types here
        raise _parsing_error(name) from None
    return array


def _parsing_error(name: str) -> Failure:
    return invalid(f"tensor parsing error: {name}")
