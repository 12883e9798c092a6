"""TF Serving's JSON: requests to arrays, arrays to replies (util/json_tensor.cc).

Row form: `{"instances": [...]}` -> `{"predictions": [...]}`; column form: `{"inputs": ...}` ->
`{"outputs": ...}`. A signature with one input takes bare values, one with one output answers bare
ones. Bytes are `{"b64": "..."}`; so are outputs whose names end with `_bytes`.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfft.serve.failure import Failure, invalid
from tfft.serve.loaded import Arrays, Info

ROW, COLUMN = "instances", "inputs"
SHOWN = 200  # letters of a value that an error repeats
DEEPEST = 32  # lists within lists


def parse(body: bytes) -> dict[str, Any]:
    """The object that a request's body is.

    Raises:
        Failure: it is none.
    """
    try:
        value = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise invalid(
            f"JSON Parse error: Invalid encoding in string. at offset: {error.start}"
        ) from None
    except json.JSONDecodeError as error:
        what = "The document is empty" if not body.strip() else error.msg
        raise invalid(f"JSON Parse error: {what}. at offset: {error.pos}") from None
    except (RecursionError, ValueError) as error:  # too deep, a number of too many digits
        raise invalid(f"JSON Parse error: {str(error).splitlines()[0]}") from None
    if not isinstance(value, dict):
        raise invalid(f"JSON Value: {_shown(value)} Is not object")
    return value


def signature_name(request: Mapping[str, Any]) -> str:
    """The signature that is asked for; empty for the default's."""
    name = request.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid("'signature_name' key must be a string value.")
    return name


def inputs(request: Mapping[str, Any], infos: Mapping[str, Info]) -> tuple[Arrays, str]:
    """The arrays of a predict request, and its form.

    Raises:
        Failure: it is not well formed, or not what the signature takes.
    """
    if ROW in request and COLUMN in request:
        raise invalid(
            f"Not formatted correctly expecting only one of '{COLUMN}' or '{ROW}' keys to exist"
        )
    if ROW in request:
        return _rows(request[ROW], infos), ROW
    if COLUMN in request:
        return _columns(request[COLUMN], infos), COLUMN
    raise invalid(f"Missing '{COLUMN}' or '{ROW}' key")


def outputs(found: Mapping[str, np.ndarray], form: str) -> dict[str, Any]:
    """The reply to a predict request.

    Raises:
        Failure: outputs of different numbers of rows are asked for in rows.
    """
    values = {name: plain(value, name) for name, value in found.items()}
    if form == COLUMN:
        return {"outputs": next(iter(values.values())) if len(values) == 1 else values}
    sizes = {np.shape(value)[:1] for value in found.values()}
    if len(sizes) != 1 or sizes == {()}:
        told = ", ".join(f"{name}: {list(np.shape(value))}" for name, value in found.items())
        raise invalid(
            f"outputs have no common batch size ({told}); ask in column form ('{COLUMN}')"
        )
    if len(values) == 1:
        return {"predictions": next(iter(values.values()))}
    rows = zip(*values.values(), strict=True)
    return {"predictions": [dict(zip(values, row, strict=True)) for row in rows]}


def plain(value: np.ndarray, name: str = "") -> Any:
    """An array as JSON's values; numbers have as many digits as their type needs."""
    value = np.asarray(value)
    if value.dtype == object:
        wrap = _base64 if name.endswith("_bytes") else _text
        flat = [wrap(one) for one in value.ravel()]
        return np.array([*flat, None], object)[:-1].reshape(value.shape).tolist()
    if value.dtype == np.float32:  # 0.1, not 0.10000000149011612
        return value.astype(str).astype(np.float64).tolist()
    return value.astype(np.float64).tolist() if value.dtype.kind == "f" else value.tolist()


def _text(value: bytes) -> str:
    return value.decode("utf-8", errors="replace")


def _base64(value: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(value).decode()}


def _rows(instances: Any, infos: Mapping[str, Info]) -> Arrays:
    if not isinstance(instances, list):
        raise invalid(f"JSON Value: {_shown(instances)} Excepting '{ROW}' to be an list/array")
    if not instances:
        raise invalid(f"JSON Value: {_shown(instances)} no values in '{ROW}' array")
    if not _is_object(instances[0]):
        if len(infos) != 1:
            raise invalid(
                f"{ROW} is a plain list, but expecting list of objects as multiple input tensors "
                "required as per tensorinfo_map"
            )
        ((name, info),) = infos.items()
        return {name: _array(instances, info, name)}
    for at, row in enumerate(instances):
        if not _is_object(row):
            raise _of_element(at, f"JSON Value: {_shown(row)} is not an object")
        for name in infos:
            if name not in row:
                raise _of_element(at, f"JSON object: does not have named input: {name}")
        for name in row:
            if name not in infos:
                raise _of_element(at, f"JSON object: has an unknown input: {name}")
    return {name: _array([row[name] for row in instances], i, name) for name, i in infos.items()}


def _columns(given: Any, infos: Mapping[str, Info]) -> Arrays:
    if not _is_object(given):
        if len(infos) != 1:
            raise invalid(
                f"'{COLUMN}' is a plain value/list, but expecting an object as multiple input "
                "tensors required as per tensorinfo_map"
            )
        ((name, info),) = infos.items()
        return {name: _array(given, info, name)}
    for name in infos:
        if name not in given:
            raise invalid(f"Missing named input: {name} in '{COLUMN}' object.")
    for name in given:
        if name not in infos:
            raise invalid(f"Unknown named input: {name} in '{COLUMN}' object.")
    return {name: _array(given[name], info, name) for name, info in infos.items()}


def _is_object(value: Any) -> bool:
    """Whether it is an object that stands for more than bytes."""
    return isinstance(value, dict) and set(value) != {"b64"}


def _of_element(at: int, message: str) -> Failure:
    return invalid(
        f"Failed to process element: {at} of '{ROW}' list. Error: INVALID_ARGUMENT: {message}"
    )


def _array(value: Any, info: Info, name: str) -> np.ndarray:
    """Lists within lists as an array of the input's type."""
    shape: list[int] = []
    inner = value
    while isinstance(inner, list):
        shape.append(len(inner))
        if len(shape) > DEEPEST:
            raise invalid(f"input {name}: lists are nested deeper than {DEEPEST}")
        if not inner:
            break
        inner = inner[0]
    flat: list[Any] = []
    _flatten(value, shape, 0, info.dtype, flat)
    if info.dtype == tf.string:
        return np.array([*flat, None], object)[:-1].reshape(shape)
    return np.array(flat, info.dtype.as_numpy_dtype).reshape(shape)


def _flatten(value: Any, shape: Sequence[int], level: int, dtype: tf.DType, out: list[Any]) -> None:
    if level == len(shape):
        if isinstance(value, list):
            raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
        out.append(_scalar(value, dtype))
        return
    if not isinstance(value, list):
        raise invalid(
            f"JSON Value: {_shown(value)} Type: {_kind(value)} is not a list, as at level {level} "
            "of the first value"
        )
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: "
            f"{shape[level]}"
        )
    for one in value:
        _flatten(one, shape, level + 1, dtype, out)


def _scalar(value: Any, dtype: tf.DType) -> Any:
    """A JSON value of the wanted type; nothing is rounded, nothing is cut."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if dtype == tf.string:
        if isinstance(value, dict) and set(value) == {"b64"}:
            return decoded(value)
        if isinstance(value, str):
            return value.encode("utf-8", errors="surrogatepass")
    elif dtype == tf.bool:
        if isinstance(value, bool):
            return value
    elif dtype.is_integer:
        if number and isinstance(value, int) and dtype.min <= value <= dtype.max:
            return value
    elif number and (not math.isfinite(value) or abs(value) <= dtype.max):
        return value
    raise invalid(
        f"JSON Value: {_shown(value)} Type: {_kind(value)} is not of expected type: {dtype.name}"
    )


_ALPHABET = re.compile(r"[A-Za-z0-9+/]*={0,2}")


def decoded(value: Mapping[str, Any]) -> bytes:
    """The bytes of `{"b64": ...}`.

    Raises:
        Failure: they are not base64.
    """
    text = value["b64"]
    try:
        if isinstance(text, str) and _ALPHABET.fullmatch(text):
            return base64.b64decode(text, validate=True)
    except binascii.Error:
        pass
    raise invalid(f"JSON Value: {_shown(value)} not formatted correctly for base64 data")


def _kind(value: Any) -> str:
    names = {dict: "Object", list: "Array", str: "String", bool: "Bool", type(None): "Null"}
    return names.get(type(value), "Number")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."
