"""Classify and regress: JSON objects as tf.Examples, answers as JSON (util/json_tensor.cc)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfft.serve import json_tensors
from tfft.serve.failure import invalid
from tfft.serve.loaded import Arrays, Signature

INPUT = "inputs"
METHODS = {
    "classify": ("classification", "tensorflow/serving/classify"),
    "regress": ("regression", "tensorflow/serving/regress"),
}


def check(signature: Signature, verb: str) -> None:
    """The signature is one for this call.

    Raises:
        Failure: it is one for another.
    """
    word, method = METHODS[verb]
    if signature.method != method:
        raise invalid(
            f"Expected {word} signature method_name to be {method}. Was: {signature.method}"
        )
    if set(signature.inputs) != {INPUT}:
        raise invalid(f"Expected one Tensor input. Was: {len(signature.inputs)}")


def inputs(request: Mapping[str, Any]) -> Arrays:
    """The tf.Examples of a request `{"examples": [{feature: value}], "context": {...}}`.

    Raises:
        Failure: it is not well formed.
    """
    given = request.get("examples")
    if given is None:
        raise invalid("'examples' key not found.")
    if not isinstance(given, list):
        raise invalid("'examples' value must be a list/array")
    if not given:
        raise invalid("'examples' list is empty")
    context = request.get("context", {})
    if not isinstance(context, dict):
        raise invalid("'context' value must be an object")
    shared, made = {name: _feature(name, value) for name, value in context.items()}, []
    for at, one in enumerate(given):
        if not isinstance(one, dict):
            raise invalid(f"Example {at} must be an object of features")
        own = {name: _feature(name, value) for name, value in one.items()}
        made.append(_example({**shared, **own}))
    return serialized(made)


def merged(given: Any) -> list[tf.train.Example]:
    """The examples of a request, each with its context."""
    kind = given.WhichOneof("kind")
    if kind == "example_list":
        found = [
            tf.train.Example.FromString(e.SerializeToString()) for e in given.example_list.examples
        ]
    elif kind == "example_list_with_context":
        both, found = given.example_list_with_context, []
        for one in both.examples:
            merged = tf.train.Example.FromString(both.context.SerializeToString())
            merged.MergeFromString(one.SerializeToString())
            found.append(merged)
    else:
        found = []
    if not found:
        raise invalid("Input is empty.")
    return found


def serialized(examples: list[tf.train.Example]) -> Arrays:
    """What the signature takes."""
    return {INPUT: np.array([e.SerializeToString() for e in examples], object)}


def classes(found: Mapping[str, np.ndarray]) -> list[list[tuple[str, float]]]:
    """Label and score of every class, for each row; either may be missing in a signature.

    Raises:
        Failure: the signature answers neither.
    """
    if "classes" not in found and "scores" not in found:
        raise invalid("Expected classification signature outputs to contain classes or scores")
    labels, scores = found.get("classes"), found.get("scores")
    shape = (labels if labels is not None else scores).shape
    names = json_tensors.plain(labels) if labels is not None else np.full(shape, "").tolist()
    values = json_tensors.plain(scores) if scores is not None else np.zeros(shape).tolist()
    return [list(zip(*row, strict=True)) for row in zip(names, values, strict=True)]


def values(found: Mapping[str, np.ndarray]) -> list[float]:
    """The number for each row.

    Raises:
        Failure: the signature answers none.
    """
    if set(found) != {"outputs"}:
        raise invalid("Expected regression signature outputs to contain only 'outputs'")
    return json_tensors.plain(found["outputs"].reshape(len(found["outputs"])))


def _example(features: Mapping[str, tf.train.Feature]) -> tf.train.Example:
    return tf.train.Example(features=tf.train.Features(feature=features))


def _feature(name: str, value: Any) -> tf.train.Feature:
    """A number, a text, `{"b64": ...}`, or a list of one kind of them."""
    items = value if isinstance(value, list) else [value]
    items = [json_tensors.decoded(v) if _bytes(v) else v for v in items]
    if all(isinstance(v, str | bytes) for v in items):
        raw = [v.encode("utf-8", "surrogatepass") if isinstance(v, str) else v for v in items]
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=raw))
    numbers = [v for v in items if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) != len(items):
        raise invalid(
            f"feature {name}: must be a number, a string, {{'b64': ...}} or a list of one kind of "
            "them"
        )
    if any(isinstance(v, float) for v in numbers):
        return tf.train.Feature(float_list=tf.train.FloatList(value=numbers))
    if any(not -(2**63) <= v < 2**63 for v in numbers):
        raise invalid(f"feature {name}: must fit in 64 bits")
    return tf.train.Feature(int64_list=tf.train.Int64List(value=numbers))


def _bytes(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"b64"}
