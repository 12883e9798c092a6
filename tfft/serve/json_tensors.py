"""Convert TF Serving's JSON requests to arrays, and arrays to its replies (util/json_tensor.cc).

Row form: `{"instances": [...]}` -> `{"predictions": [...]}`; column form: `{"inputs": ...}` ->
`{"outputs": ...}`. With a single input or output, values may be given without its name. Bytes are
`{"b64": "..."}`; so are outputs whose names end with `_bytes`.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfft.serve import json_text
from tfft.serve.failure import Failure, invalid
from tfft.serve.json_text import INDENT, debug_text, quoted
from tfft.serve.loaded import Arrays, TensorInfo, type_name

ROW, COLUMN = "instances", "inputs"
MAX_DEPTH = 32  # levels of nested lists; the largest number of axes in NumPy 1

_INTEGERS = {  # type -> range of the JSON integers that TF Serving accepts for it
    **dict.fromkeys((tf.int32, tf.int16, tf.int8, tf.uint8), (-(2**31), 2**31)),
    tf.int64: (-(2**63), 2**63),
    tf.uint32: (0, 2**32),
    tf.uint64: (0, 2**64),
}
_WRITABLE_TYPES = {tf.float32, tf.float64, tf.string, tf.bool, *_INTEGERS}


def parse(body: bytes, max_bytes: int = json_text.DEFAULT_MAX_BYTES) -> dict[str, Any]:
    """Return the JSON object of a request's body.

    Raises:
        Failure: the body is no JSON object, or its values would take more than `max_bytes`.
    """
    value = json_text.parse(body, max_bytes)
    if not isinstance(value, dict):
        raise _format_error(value, "Is not object")
    return value


def signature_name(request: Mapping[str, Any]) -> str:
    """Return the name of the requested signature, or "" for the default one.

    Raises:
        Failure: the name is not a string.
    """
    name = request.get("signature_name", "")
    if not isinstance(name, str):
        raise _format_error(
            request, "not formatted correctly. 'signature_name' key must be a string value."
        )
    return name


def inputs(request: Mapping[str, Any], infos: Mapping[str, TensorInfo]) -> tuple[Arrays, str]:
    """Return the arrays of a predict request, and its form.

    Args:
        request: the parsed body.
        infos: inputs of the signature, by name.

    Returns:
        The arrays by name, and `instances` (rows) or `inputs` (columns).

    Raises:
        Failure: the request is malformed, or lacks an input of the signature.
    """
    if ROW in request and COLUMN in request:
        raise _format_error(
            request,
            f"Not formatted correctly expecting only one of '{COLUMN}' or '{ROW}' keys to exist ",
        )
    if ROW in request:
        instances = request[ROW]
        if not isinstance(instances, list):
            raise _format_error(request, f"Expecting '{ROW}' to be an list/array")
        if not instances:
            raise _format_error(request, f"No values in '{ROW}' array")
        return _rows(instances, infos), ROW
    if COLUMN in request:
        return _columns(request[COLUMN], infos), COLUMN
    raise invalid(f"Missing '{COLUMN}' or '{ROW}' key")


def _rows(instances: Sequence[Any], infos: Mapping[str, TensorInfo]) -> Arrays:
    if not isinstance(instances[0], dict) and len(infos) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    columns: dict[str, _Column] = {}
    # Plain values belong to the only input.
    if not _is_object(instances[0]):
        column = columns[min(infos)] = _Column(infos[min(infos)])
        for index, row in enumerate(instances):
            if _is_object(row):
                raise invalid(f"Expecting value/list but got object at item {index} of input list")
            _append(column, row, f"{index} of")
    else:
        for index, row in enumerate(instances):
            if not _is_object(row):
                raise invalid(f"Expecting object but got list at item {index} of input list")
            for name, value in row.items():
                position = f"{index} key: {name} of"
                if name not in infos:
                    raise _element_error(
                        position, f"JSON object: does not have named input: {name}"
                    )
                _append(columns.setdefault(name, _Column(infos[name])), value, position)
            if row.keys() != infos.keys():
                raise invalid(
                    f"Failed to process element: {index} of 'instances' list. JSON object: "
                    f"{debug_text(row)} keys must be equal to: {','.join(sorted(infos))}"
                )
    return {name: column.array([len(instances)]) for name, column in columns.items()}


def _append(column: "_Column", value: Any, position: str) -> None:
    try:
        column.append(value)
    except Failure as failure:
        raise _element_error(position, failure.message, failure.code) from None


def _element_error(position: str, message: str, code: str = "INVALID_ARGUMENT") -> Failure:
    return invalid(
        f"Failed to process element: {position} 'instances' list. Error: {code}: {message}"
    )


def _columns(value: Any, infos: Mapping[str, TensorInfo]) -> Arrays:
    if not _is_object(value):
        if len(infos) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        value = dict.fromkeys(infos, value)  # a plain value is that of the only input
    arrays = {}
    for name, info in infos.items():
        if name not in value:
            raise invalid(f"Missing named input: {name} in '{COLUMN}' object.")
        column = _Column(info)
        column.append(value[name])
        # The value has the batch axis already.
        arrays[name] = column.array([])
    return arrays


class _Column:
    """The values of one input, which must all have the shape of the first one."""

    def __init__(self, info: TensorInfo):
        self._type, self._values = info.dtype, list[Any]()
        self._shape: list[int] | None = None

    def append(self, value: Any) -> None:
        """Add a value of the input.

        Raises:
            Failure: the value is ragged, of another type, or of another shape than the first.
        """
        # The shape of the first element at each level; `_flatten` compares the others with it.
        shape, num_values = _shape(value), len(self._values)
        _flatten(value, shape, 0, self._type, self._values)
        if self._shape is None:
            self._shape, self._size = shape, len(self._values)
        elif (size := len(self._values) - num_values) != self._size:
            raise invalid(f"Expecting tensor size: {self._size} but got: {size}")
        elif shape != self._shape:
            raise invalid(
                f"Expecting shape {_shape_text(self._shape)} but got: {_shape_text(shape)}"
            )

    def array(self, batch_shape: list[int]) -> np.ndarray:
        """Return the values as an array, [*batch_shape, *value_shape]."""
        shape = batch_shape + (self._shape or [])
        if self._type == tf.string:
            return np.array([*self._values, None], object)[:-1].reshape(shape)
        with np.errstate(over="ignore"):  # as in TF Serving, large floats become inf and int8 wraps
            array = np.array(self._values, _wide_dtype(self._type)).astype(
                self._type.as_numpy_dtype
            )
        return array.reshape(shape)


def _wide_dtype(dtype: tf.DType) -> Any:
    """Return a type that holds every JSON number that is accepted for `dtype`."""
    if dtype == tf.float32:
        return np.float64
    return np.int32 if dtype in (tf.int16, tf.int8, tf.uint8) else dtype.as_numpy_dtype


def _shape(value: Any) -> list[int]:
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if len(shape) > MAX_DEPTH:
            raise invalid(f"lists are nested deeper than {MAX_DEPTH} levels")
        if not value:
            break
        value = value[0]
    return shape


def _flatten(value: Any, shape: Sequence[int], level: int, dtype: tf.DType, out: list[Any]) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {debug_text(value)} found at incorrect level: {level + 1} in the "
                f"JSON DOM. Expected at level: {len(shape)}"
            )
        out.append(_scalar(value, dtype))
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: "
            f"{shape[level]}"
        )
    if level == len(shape) - 1 and _are_numbers(value, dtype):
        out.extend(value)
        return
    for element in value:
        _flatten(element, shape, level + 1, dtype, out)


def _are_numbers(values: Sequence[Any], dtype: tf.DType) -> bool:
    """Return whether all values are numbers that `dtype` accepts.

    This test of a whole list is much faster than `_scalar` for each value.
    """
    # `type` instead of isinstance, because a bool is an int but no number here.
    types = set(map(type, values))
    if dtype in (tf.float32, tf.float64):
        return types <= {int, float}
    if dtype not in _INTEGERS or types != {int}:
        return False
    minimum, limit = _INTEGERS[dtype]
    return minimum <= min(values) and max(values) < limit


def _scalar(value: Any, dtype: tf.DType) -> Any:
    """Return a JSON value checked against the input's type; strings become bytes.

    Raises:
        Failure: the value is of another type, or the type has no form in JSON.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if dtype == tf.string:
        if isinstance(value, str):
            return as_bytes(value)
        if isinstance(value, dict):
            return decode_base64(value)
    elif isinstance(value, dict):
        pass  # the error below
    elif dtype == tf.bool:
        if isinstance(value, bool):
            return value
    elif dtype in (tf.float32, tf.float64):
        if is_number:
            return value
    elif dtype in _INTEGERS:
        minimum, limit = _INTEGERS[dtype]
        if is_number and isinstance(value, int) and minimum <= value < limit:
            return value
    else:
        raise Failure(
            "UNIMPLEMENTED",
            f"Conversion of JSON Value: {debug_text(value)} to type: {type_name(dtype)}",
        )
    raise invalid(
        f"JSON Value: {debug_text(value)} Type: {json_type_name(value)} is not of expected type: "
        f"{type_name(dtype)}"
    )


def as_bytes(text: str) -> bytes:
    """Return the bytes of a JSON string as they were in the request."""
    return text.encode("utf-8", "surrogateescape")


def is_base64(value: Any) -> bool:
    """Return whether a value is `{"b64": "..."}`, TF Serving's form of bytes."""
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


_WHITESPACE = re.compile(r"[ \t\n\v\f\r]+")
_BASE64 = re.compile(r"([A-Za-z0-9+/]*)([=.]*)")


def decode_base64(value: Any) -> bytes:
    """Return the bytes of `{"b64": "..."}`; padding is optional, white space is skipped.

    Raises:
        Failure: the value is another object, or its text is not base64.
    """
    if not is_base64(value):
        raise _format_error(value, "not formatted correctly for base64 data")
    match = _BASE64.fullmatch(_WHITESPACE.sub("", value["b64"]))
    if match is not None:
        digits, padding = match.groups()
        # One base64 digit left over (missing = 3) has 6 bits, fewer than a byte.
        missing = -len(digits) % 4
        if missing != 3 and len(padding) in (0, missing):
            return base64.b64decode(digits + "=" * missing)
    raise invalid("Unable to base64 decode")


def json_type_name(value: Any) -> str:
    """Return the RapidJSON name of a value's type, which TF Serving's messages contain."""
    if isinstance(value, bool):
        return str(value)
    names = {dict: "Object", list: "Array", str: "String", type(None): "Null"}
    return names.get(type(value), "Number")


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64(value)


def _format_error(value: Any, message: str) -> Failure:
    return invalid(f"JSON Value: {debug_text(value)} {message}")


def _shape_text(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def outputs(arrays: Mapping[str, np.ndarray], form: str) -> str:
    """Return the JSON reply to a predict request, formatted exactly as TF Serving does.

    Args:
        arrays: the outputs by name.
        form: `instances` (rows) or `inputs` (columns), as `inputs` returns it.

    Raises:
        Failure: in row form, outputs differ in their number of rows; or an output has a type that
            JSON lacks.
    """
    if not arrays:
        raise invalid("Cannot convert empty tensor map to JSON")
    # Column form: each output as a whole.
    if form == COLUMN:
        single = len(arrays) == 1
        texts = {
            name: "".join(_nested(name, array, 0, depth=1 if single else 2, single_line=False))
            for name, array in arrays.items()
        }
        return _object({"outputs": next(iter(texts.values())) if single else _object(texts, 1)})
    # Row form: one element for each row.
    num_rows = None
    for name, array in arrays.items():
        if array.ndim == 0:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if num_rows not in (None, len(array)):
            raise invalid(
                f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: "
                f"{num_rows}"
            )
        num_rows = len(array)
    single = len(arrays) == 1
    columns = [_nested(n, a, 1, 2 if single else 3, single_line=True) for n, a in arrays.items()]
    if single:
        return _object({"predictions": one_line(columns[0], "\n" + INDENT)})
    objects = [
        f"\n{INDENT * 2}" + _object(dict(zip(arrays, row, strict=True)), 2)
        for row in zip(*columns, strict=True)
    ]
    return _object({"predictions": f"[{','.join(objects)}{chr(10) + INDENT if objects else ''}]"})


def one_line(texts: Sequence[str], end: str = "") -> str:
    """Return a JSON array on one line, with `end` before its closing bracket."""
    return f"[{', '.join(texts)}{end if texts else ''}]"


def error(message: str) -> str:
    """Return the JSON reply to a failed request."""
    return _object({"error": quoted(message)})


def results(texts: Sequence[str], end: str = "") -> str:
    """Return the JSON reply to classify and regress."""
    return _object({"results": one_line(texts, end)})


def _object(members: Mapping[str, str], depth: int = 0) -> str:
    lines = [f"\n{INDENT * (depth + 1)}{quoted(name)}: {text}" for name, text in members.items()]
    return f"{{{','.join(lines)}\n{INDENT * depth}}}"


def _nested(name: str, array: np.ndarray, start: int, depth: int, single_line: bool) -> list[str]:
    """Return the JSON text of each element along an array's first `start` axes.

    Args:
        name: name of the output.
        array: its values.
        start: number of leading axes that are flattened into the list.
        depth: nesting depth of the texts in the reply, for their indentation.
        single_line: write lists on one line.

    Raises:
        Failure: the type of the array has no form in JSON.
    """
    # Join the texts of the lists from the innermost axis outwards.
    texts = _leaf_texts(name, array, depth + array.ndim - start)
    for axis in reversed(range(start, array.ndim)):
        size, num_groups = array.shape[axis], int(np.prod(array.shape[:axis], dtype=np.int64))
        indent = "" if single_line else "\n" + INDENT * (depth + axis - start + 1)
        separator, end = (", ", "") if single_line else ("," + indent, indent[: -len(INDENT)])
        texts = [
            f"[{indent}{separator.join(texts[group * size : (group + 1) * size])}{end}]"
            if size
            else "[]"
            for group in range(num_groups)
        ]
    return texts


def _leaf_texts(name: str, array: np.ndarray, depth: int) -> list[str]:
    dtype = tf.string if array.dtype.kind in "OS" else tf.dtypes.as_dtype(array.dtype)
    if dtype not in _WRITABLE_TYPES:
        if not array.size:
            return []
        raise invalid(f"Failed to write JSON value for tensor type: {type_name(dtype)}")
    values = array.ravel().tolist()
    if dtype == tf.string:
        if name.endswith("_bytes"):
            return [_object({"b64": f'"{base64.b64encode(v).decode()}"'}, depth) for v in values]
        return [quoted(value.decode("utf-8", "surrogateescape")) for value in values]
    if dtype in (tf.float32, tf.float64):
        return decimals(array)
    return [str(value).lower() for value in values]  # true, false


def decimals(array: np.ndarray) -> list[str]:
    """Return floats as text with six digits, or with as many as they need to be read back equal."""
    values = array.ravel().tolist()
    texts = [f"{value:.6g}" for value in values]
    is_exact = np.array([float(text) for text in texts]).astype(array.dtype) == array.ravel()
    exact_format = "%.9g" if array.dtype == np.float32 else "%.17g"
    for index in np.flatnonzero(~is_exact).tolist():
        texts[index] = exact_format % values[index]
    # "n" is in nan and inf; whole numbers get ".0".
    texts = [text if "." in text or "e" in text or "n" in text else text + ".0" for text in texts]
    special_names = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    return [special_names.get(text, text) for text in texts]
