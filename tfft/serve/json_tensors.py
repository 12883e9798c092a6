"""Convert TF Serving's JSON requests to arrays, and arrays to its replies (util/json_tensor.cc).

Row form: `{"instances": [...]}` -> `{"predictions": [...]}`; column form: `{"inputs": ...}` ->
`{"outputs": ...}`. A signature with one input takes bare values, one with one output answers bare
ones. Bytes are `{"b64": "..."}`; so are outputs whose names end with `_bytes`.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfft.serve import json_text
from tfft.serve.failure import Failure, invalid
from tfft.serve.json_text import INDENT, quoted, shown
from tfft.serve.loaded import Arrays, Info, type_name

ROW, COLUMN = "instances", "inputs"
DEEPEST = 32  # lists within lists; numpy's arrays have no more axes

_INTEGERS = {  # of each type, the range of JSON's integers that TF Serving takes for it
    **dict.fromkeys((tf.int32, tf.int16, tf.int8, tf.uint8), (-(2**31), 2**31)),
    tf.int64: (-(2**63), 2**63),
    tf.uint32: (0, 2**32),
    tf.uint64: (0, 2**64),
}
_WRITTEN = {tf.float32, tf.float64, tf.string, tf.bool, *_INTEGERS}


def parse(body: bytes, most_bytes: int = json_text.MEMORY) -> dict[str, Any]:
    """Return the object that a request's body holds.

    Raises:
        Failure: it holds none, or one that takes more than `most_bytes`.
    """
    value = json_text.parse(body, most_bytes)
    if not isinstance(value, dict):
        raise _format_error(value, "Is not object")
    return value


def signature_name(request: Mapping[str, Any]) -> str:
    """Return the requested signature; empty for the default.

    Raises:
        Failure: its name is not a string.
    """
    name = request.get("signature_name", "")
    if not isinstance(name, str):
        raise _format_error(
            request, "not formatted correctly. 'signature_name' key must be a string value."
        )
    return name


def inputs(request: Mapping[str, Any], infos: Mapping[str, Info]) -> tuple[Arrays, str]:
    """Return the arrays of a predict request, and its form.

    Raises:
        Failure: it is malformed, or lacks an input of the signature.
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


def _rows(instances: Sequence[Any], infos: Mapping[str, Info]) -> Arrays:
    if not isinstance(instances[0], dict) and len(infos) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    columns: dict[str, _Column] = {}
    if not _is_object(instances[0]):
        column = columns[min(infos)] = _Column(infos[min(infos)])
        for number, row in enumerate(instances):
            if _is_object(row):
                raise invalid(f"Expecting value/list but got object at item {number} of input list")
            _append(column, row, f"{number} of")
    else:
        for number, row in enumerate(instances):
            if not _is_object(row):
                raise invalid(f"Expecting object but got list at item {number} of input list")
            for name, value in row.items():
                place = f"{number} key: {name} of"
                if name not in infos:
                    raise _element_error(place, f"JSON object: does not have named input: {name}")
                _append(columns.setdefault(name, _Column(infos[name])), value, place)
            if row.keys() != infos.keys():
                raise invalid(
                    f"Failed to process element: {number} of 'instances' list. JSON object: "
                    f"{shown(row)} keys must be equal to: {','.join(sorted(infos))}"
                )
    return {name: column.array([len(instances)]) for name, column in columns.items()}


def _append(column: "_Column", value: Any, place: str) -> None:
    try:
        column.append(value)
    except Failure as failure:
        raise _element_error(place, failure.message, failure.code) from None


def _element_error(place: str, message: str, code: str = "INVALID_ARGUMENT") -> Failure:
    return invalid(f"Failed to process element: {place} 'instances' list. Error: {code}: {message}")


def _columns(value: Any, infos: Mapping[str, Info]) -> Arrays:
    if not _is_object(value):
        if len(infos) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        value = dict.fromkeys(infos, value)
    arrays = {}
    for name, info in infos.items():
        if name not in value:
            raise invalid(f"Missing named input: {name} in '{COLUMN}' object.")
        column = _Column(info)
        column.append(value[name])
        arrays[name] = column.array([])
    return arrays


class _Column:
    """The values of one input, all of one shape: that of the first."""

    def __init__(self, info: Info):
        self._type, self._values = info.dtype, list[Any]()
        self._shape: list[int] | None = None

    def append(self, value: Any) -> None:
        """Add a value of the input.

        Raises:
            Failure: it is ragged, of another type, or not shaped as the first.
        """
        shape, before = _shape(value), len(self._values)
        _flatten(value, shape, 0, self._type, self._values)
        if self._shape is None:
            self._shape, self._size = shape, len(self._values)
        elif (size := len(self._values) - before) != self._size:
            raise invalid(f"Expecting tensor size: {self._size} but got: {size}")
        elif shape != self._shape:
            raise invalid(f"Expecting shape {_brackets(self._shape)} but got: {_brackets(shape)}")

    def array(self, batch: list[int]) -> np.ndarray:
        """Return the values, behind the axes of the batch."""
        shape = batch + (self._shape or [])
        if self._type == tf.string:
            return np.array([*self._values, None], object)[:-1].reshape(shape)
        with np.errstate(over="ignore"):  # a float that is too large is infinite, an int8 wraps
            wide = np.array(self._values, _wide(self._type)).astype(self._type.as_numpy_dtype)
        return wide.reshape(shape)


def _wide(dtype: tf.DType) -> Any:
    """Return the type that holds whatever JSON has for a narrower one."""
    if dtype == tf.float32:
        return np.float64
    return np.int32 if dtype in (tf.int16, tf.int8, tf.uint8) else dtype.as_numpy_dtype


def _shape(value: Any) -> list[int]:
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if len(shape) > DEEPEST:
            raise invalid(f"lists are nested deeper than {DEEPEST} levels")
        if not value:
            break
        value = value[0]
    return shape


def _flatten(value: Any, shape: Sequence[int], level: int, dtype: tf.DType, out: list[Any]) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {shown(value)} found at incorrect level: {level + 1} in the JSON "
                f"DOM. Expected at level: {len(shape)}"
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
    """Return whether all are numbers of the input's type: most are, and it is quickly seen."""
    types = set(map(type, values))
    if dtype in (tf.float32, tf.float64):
        return types <= {int, float}
    if dtype not in _INTEGERS or types != {int}:
        return False
    low, high = _INTEGERS[dtype]
    return low <= min(values) and max(values) < high


def _scalar(value: Any, dtype: tf.DType) -> Any:
    """Return a JSON value of the input's type, unconverted but for strings, which become bytes."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if dtype == tf.string:
        if isinstance(value, str):
            return as_bytes(value)
        if isinstance(value, dict):
            return decoded(value)
    elif isinstance(value, dict):
        pass
    elif dtype == tf.bool:
        if isinstance(value, bool):
            return value
    elif dtype in (tf.float32, tf.float64):
        if number:
            return value
    elif dtype in _INTEGERS:
        low, high = _INTEGERS[dtype]
        if number and isinstance(value, int) and low <= value < high:
            return value
    else:
        raise Failure(
            "UNIMPLEMENTED",
            f"Conversion of JSON Value: {shown(value)} to type: {type_name(dtype)}",
        )
    raise invalid(
        f"JSON Value: {shown(value)} Type: {kind(value)} is not of expected type: "
        f"{type_name(dtype)}"
    )


def as_bytes(text: str) -> bytes:
    """Return the bytes that a JSON string was read from."""
    return text.encode("utf-8", "surrogateescape")


def is_base64(value: Any) -> bool:
    """Return whether a value is `{"b64": "..."}`, which stands for bytes."""
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


_WHITE = re.compile(r"[ \t\n\v\f\r]+")
_BASE64 = re.compile(r"([A-Za-z0-9+/]*)([=.]*)")


def decoded(value: Any) -> bytes:
    """Return the bytes of `{"b64": "..."}`; padding may be absent, white space is skipped.

    Raises:
        Failure: it is another object, or not base64.
    """
    if not is_base64(value):
        raise _format_error(value, "not formatted correctly for base64 data")
    match = _BASE64.fullmatch(_WHITE.sub("", value["b64"]))
    if match is not None:
        digits, padding = match.groups()
        missing = -len(digits) % 4
        if missing != 3 and len(padding) in (0, missing):
            return base64.b64decode(digits + "=" * missing)
    raise invalid("Unable to base64 decode")


def kind(value: Any) -> str:
    """Return the name of a JSON value's type."""
    if isinstance(value, bool):
        return str(value)
    names = {dict: "Object", list: "Array", str: "String", type(None): "Null"}
    return names.get(type(value), "Number")


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64(value)


def _format_error(value: Any, message: str) -> Failure:
    return invalid(f"JSON Value: {shown(value)} {message}")


def _brackets(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def outputs(arrays: Mapping[str, np.ndarray], form: str) -> str:
    """Return the reply to a predict request, with TF Serving's digits, spaces and line ends.

    Raises:
        Failure: outputs of different numbers of rows in row form, or of a type that JSON lacks.
    """
    if not arrays:
        raise invalid("Cannot convert empty tensor map to JSON")
    if form == COLUMN:
        single = len(arrays) == 1
        texts = {
            name: "".join(_nested(name, array, 0, depth=1 if single else 2, one_line=False))
            for name, array in arrays.items()
        }
        return _object({"outputs": next(iter(texts.values())) if single else _object(texts, 1)})
    rows = None
    for name, array in arrays.items():
        if array.ndim == 0:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if rows not in (None, len(array)):
            raise invalid(
                f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {rows}"
            )
        rows = len(array)
    single = len(arrays) == 1
    columns = [_nested(n, a, 1, 2 if single else 3, one_line=True) for n, a in arrays.items()]
    if single:
        return _object({"predictions": one_line(columns[0], "\n" + INDENT)})
    objects = [
        f"\n{INDENT * 2}" + _object(dict(zip(arrays, row, strict=True)), 2)
        for row in zip(*columns, strict=True)
    ]
    return _object({"predictions": f"[{','.join(objects)}{chr(10) + INDENT if objects else ''}]"})


def one_line(texts: Sequence[str], end: str = "") -> str:
    """Return an array on one line; what stands before its closing bracket may be a line end."""
    return f"[{', '.join(texts)}{end if texts else ''}]"


def error(message: str) -> str:
    """Return the reply to a request that failed."""
    return _object({"error": quoted(message)})


def results(texts: Sequence[str], end: str = "") -> str:
    """Return the reply to classify and regress."""
    return _object({"results": one_line(texts, end)})


def _object(members: Mapping[str, str], depth: int = 0) -> str:
    lines = [f"\n{INDENT * (depth + 1)}{quoted(name)}: {text}" for name, text in members.items()]
    return f"{{{','.join(lines)}\n{INDENT * depth}}}"


def _nested(name: str, array: np.ndarray, start: int, depth: int, one_line: bool) -> list[str]:
    """Return the texts of an array along its first `start` axes, each at that depth of the reply.

    Raises:
        Failure: its type has no form in JSON.
    """
    texts = _leaf_texts(name, array, depth + array.ndim - start)
    for axis in reversed(range(start, array.ndim)):
        size, groups = array.shape[axis], int(np.prod(array.shape[:axis], dtype=np.int64))
        line = "" if one_line else "\n" + INDENT * (depth + axis - start + 1)
        comma, end = (", ", "") if one_line else ("," + line, line[: -len(INDENT)])
        texts = [
            f"[{line}{comma.join(texts[group * size : (group + 1) * size])}{end}]" if size else "[]"
            for group in range(groups)
        ]
    return texts


def _leaf_texts(name: str, array: np.ndarray, depth: int) -> list[str]:
    dtype = tf.string if array.dtype.kind in "OS" else tf.dtypes.as_dtype(array.dtype)
    if dtype not in _WRITTEN:
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
    """Return numbers with six digits, or as many as their type needs to be read back equal."""
    values = array.ravel().tolist()
    texts = [f"{value:.6g}" for value in values]
    equal = np.array([float(text) for text in texts]).astype(array.dtype) == array.ravel()
    exact = "%.9g" if array.dtype == np.float32 else "%.17g"
    for at in np.flatnonzero(~equal).tolist():
        texts[at] = exact % values[at]
    texts = [text if "." in text or "e" in text or "n" in text else text + ".0" for text in texts]
    names = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    return [names.get(text, text) for text in texts]
