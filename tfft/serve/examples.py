"""Classify and regress: convert JSON objects to tf.Examples, and results to messages and JSON.

It follows util/json_tensor.cc, servables/tensorflow/classifier.cc and regressor.cc.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, input_pb2, regression_pb2

from tfft.serve import json_tensors
from tfft.serve.failure import TooLarge, invalid
from tfft.serve.json_text import debug_text, quoted
from tfft.serve.loaded import Arrays, LoadedVersion, Signature, type_name

INPUT = "inputs"
METHODS = {
    "classify": "tensorflow/serving/classify",
    "regress": "tensorflow/serving/regress",
}


def signature(loaded: LoadedVersion, name: str, method: str) -> Signature:
    """Return the signature called `name`, checked for `method`: `classify` or `regress`.

    Raises:
        Failure: there is no such signature, or its inputs and outputs do not fit the method.
    """
    signature = loaded.signature(
        name, lambda n: invalid(f"No signature was found with the name: {n}")
    )
    check_signature(signature, method)
    return signature


def check_signature(signature: Signature, method: str) -> None:
    """Check that a signature has the inputs and outputs of a method.

    The method name of the signature is not checked: TF Serving checks it only with
    --enable_signature_method_name_check.

    Raises:
        Failure: an input or output is missing.
    """
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    num_outputs = len(signature.outputs)
    if method == "classify":
        word, names = "classification", ["classes", "scores"]
        if num_outputs not in (1, 2):
            raise invalid(f"Expected one or two output Tensors, found {num_outputs}")
    else:
        word, names = "regression", ["outputs"]
        if num_outputs != 1:
            raise invalid("Expected one output Tensor.")
    if INPUT not in signature.inputs:
        raise invalid(f"No {word} inputs found in SignatureDef: {signature.definition}")
    if signature.outputs.keys().isdisjoint(names):
        raise invalid(
            f"No regression outputs found in SignatureDef: {signature.definition}"
            if method == "regress"
            else "Expected classification signature outputs to contain at least one of "
            f'"classes" or "scores". Signature was: {signature.definition}'
        )


def from_json(request: Mapping[str, Any]) -> input_pb2.Input:
    """Return the tf.Examples of a request `{"examples": [{feature: value}], "context": {...}}`.

    Raises:
        Failure: the request is malformed.
    """
    context = _example(request["context"]) if "context" in request else None
    key = "examples"
    if key not in request:
        raise invalid(
            f"JSON Value: {debug_text(request)} When method is classify, key '{key}' is "
            "expected and was not found"
        )
    rows = request[key]
    if not isinstance(rows, list):
        raise invalid(
            f"JSON Value: {debug_text(request)} Expecting '{key}' value to be an list/array"
        )
    if not rows:
        raise invalid(f"JSON Value: {debug_text(request)} '{key}' value is an empty array")
    examples = [_example(row) for row in rows]
    if context is None:
        return input_pb2.Input(example_list=input_pb2.ExampleList(examples=examples))
    examples_with_context = input_pb2.ExampleListWithContext(examples=examples, context=context)
    return input_pb2.Input(example_list_with_context=examples_with_context)


def serialize(inputs: Any, max_bytes: int) -> Arrays:
    """Return the input of the signature: serialized tf.Examples, each preceded by the context.

    Serialized protobufs merge when concatenated, so each example also has the context's features.

    Args:
        inputs: a tensorflow.serving.Input.
        max_bytes: largest size of all copies of the context.

    Raises:
        Failure: there are no examples, or the copies of the context are too large.
    """
    rows, context = inputs.example_list.examples, b""
    if inputs.WhichOneof("kind") == "example_list_with_context":
        rows = inputs.example_list_with_context.examples
        context = inputs.example_list_with_context.context.SerializeToString()
    if not rows:
        raise invalid("Input is empty.")
    if len(context) * len(rows) > max_bytes:
        raise TooLarge(f"the context of {len(rows):,} examples takes more than {max_bytes:,} bytes")
    serialized = [context + row.SerializeToString() for row in rows]
    return {INPUT: np.array([*serialized, None], object)[:-1]}


def classifications(arrays: Arrays, rows: int) -> classification_pb2.ClassificationResult:
    """Return the label and score of every class for each row.

    Args:
        arrays: `classes`, strings, and `scores`, float32; one of them may be absent.
        rows: number of rows of the request.

    Raises:
        Failure: an array has another type, or its shape is not [rows, classes].
    """
    num_classes = None
    for name, dtype in (("classes", tf.string), ("scores", tf.float32)):
        if name not in arrays:
            continue
        array = arrays[name]
        if array.ndim != 2:
            raise invalid(
                f"Expected Tensor shape: [batch_size num_classes] but got {_shape_text(array)}"
            )
        if _dtype(array) != dtype:
            raise invalid(
                f"Expected {name} Tensor of {_dtype_enum(dtype)}. Got: {_dtype_enum(_dtype(array))}"
            )
        if len(array) != rows:
            raise invalid(f"Expected {name} output batch size of {rows}. Got: {len(array)}")
        if num_classes not in (None, array.shape[1]):
            raise invalid(
                f"Tensors class and score should match in dim_size(1). Got {num_classes} vs. "
                f"{array.shape[1]}"
            )
        num_classes = array.shape[1]
    columns = {
        "label" if name == "classes" else "score": arrays[name].tolist()
        for name in ("classes", "scores")
        if name in arrays
    }
    result = classification_pb2.ClassificationResult()
    for row in range(rows):
        classes = result.classifications.add().classes
        for index in range(num_classes or 0):
            classes.add(**{field: values[row][index] for field, values in columns.items()})
    return result


def regressions(arrays: Arrays, rows: int) -> regression_pb2.RegressionResult:
    """Return the value of each row.

    Raises:
        Failure: the output is not float32, or its shape is not [rows] or [rows, 1].
    """
    array = arrays["outputs"]
    if array.ndim != 1 and array.shape[1:] != (1,):
        raise invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{_shape_text(array)}"
        )
    if len(array) != rows:
        raise invalid(f"Input batch size did not match output batch size: {rows} vs. {len(array)}")
    if array.dtype != np.float32:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {_dtype_enum(_dtype(array))}")
    result = regression_pb2.RegressionResult()
    for value in array.reshape(rows).tolist():
        result.regressions.add(value=value)
    return result


def result(method: str, outputs: Arrays, inputs: Arrays) -> Any:
    """Return the result message of `classify` or `regress`.

    Raises:
        Failure: the outputs do not fit the method.
    """
    return (classifications if method == "classify" else regressions)(outputs, len(inputs[INPUT]))


def to_json(result: Any) -> str:
    """Return the JSON reply for classifications or regressions.

    Raises:
        Failure: the result is empty.
    """
    if isinstance(result, regression_pb2.RegressionResult):
        if not result.regressions:
            raise invalid("Cannot convert empty RegressionResults to JSON")
        return json_tensors.results(_decimals([row.value for row in result.regressions]))
    if not result.classifications:
        raise invalid("Cannot convert empty ClassificationResults to JSON")
    rows = [
        json_tensors.one_line(
            [
                f"[{quoted(entry.label)}, {score}]"
                for entry, score in zip(
                    row.classes, _decimals([c.score for c in row.classes]), strict=True
                )
            ]
        )
        for row in result.classifications
    ]
    return json_tensors.results(rows, end="\n    ")


def _decimals(values: list[float]) -> list[str]:
    return json_tensors.decimals(np.array(values, np.float32))


def _example(features: Any) -> tf.train.Example:
    if not isinstance(features, dict):
        raise invalid(
            f"Example must be JSON object but got JSON {json_tensors.json_type_name(features)}"
        )
    # protobuf's map keys must be valid UTF-8.
    feature_map = {
        json_tensors.as_bytes(name).decode("utf-8", "replace"): _feature(name, value)
        for name, value in features.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=feature_map))


def _feature(name: str, value: Any) -> tf.train.Feature:
    """Return a feature of int64, float or bytes, whichever its first value has.

    Raises:
        Failure: a later value is of another kind.
    """
    feature_kind, values = "", list[Any]()
    for element in value if isinstance(value, list) else [value]:
        element_kind, element_value = _feature_value(name, element)
        if feature_kind not in ("", element_kind):
            raise invalid(
                f"Unexpected element type in feature: {name} expecting type: {feature_kind}"
            )
        feature_kind = element_kind
        values.append(element_value)
    if feature_kind == "int64":
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    if feature_kind == "float":
        # As in TF Serving, numbers beyond float32's range become infinite.
        with np.errstate(over="ignore"):
            floats = np.array(values).astype(np.float32)
        return tf.train.Feature(float_list=tf.train.FloatList(value=floats))
    # An empty list has no kind, and becomes a feature without values.
    return tf.train.Feature(
        **({"bytes_list": tf.train.BytesList(value=values)} if feature_kind else {})
    )


def _feature_value(name: str, value: Any) -> tuple[str, Any]:
    """Return the feature kind of a JSON value, `int64`, `float` or `bytes`, and the value."""
    if isinstance(value, float):
        return "float", value
    if isinstance(value, int):  # bool is a subclass of int: True is 1, as in TF Serving
        # RapidJSON reads integers from 2^63 to 2^64 - 1 as uint64_t.
        if value >= 2**63:
            raise invalid(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
        return "int64", int(value)
    if isinstance(value, str):
        return "bytes", json_tensors.as_bytes(value)
    if json_tensors.is_base64(value):
        return "bytes", json_tensors.decode_base64(value)
    raise invalid(
        f"Feature: {name} has element with unexpected JSON type: "
        f"{json_tensors.json_type_name(value)}"
    )


def _dtype(array: np.ndarray) -> tf.DType:
    return tf.string if array.dtype == object else tf.dtypes.as_dtype(array.dtype)


def _dtype_enum(dtype: tf.DType) -> str:
    return f"DT_{type_name(dtype).upper()}"


def _shape_text(array: np.ndarray) -> str:
    return f"[{','.join(map(str, array.shape))}]"
