"""`assets.extra/tf_serving_warmup_requests`: what TF Serving runs before it serves a version, so
that no client waits for what is done at first calls.

Every signature in batches of several sizes, with short, middle and long rows. TF Serving runs them
through the batching session: a request with more rows than `max_batch_size` would keep the version
from being loaded, so the sizes are those of `serving_config.SIZES` at most.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfft.export.signatures import METHODS, RAW, example, padded
from tfft.preprocess import Inputs
from tfft.utils import console

FILE = Path("assets.extra") / "tf_serving_warmup_requests"
LARGEST = 4 << 20  # bytes of a request: what is larger says nothing that a smaller one does not


def write(
    folder: Path, inputs: Inputs, rows: Sequence[tuple[Any, ...]], sizes: Sequence[int]
) -> int:
    """Write the file and return the number of its requests; none without tensorflow-serving-api.

    Args:
        folder: of the SavedModel.
        rows: raw, as a client sends them.
        sizes: of the batches.
    """
    if importlib.util.find_spec("tensorflow_serving") is None:
        console.log(
            "export: no warm-up requests are written; pip install 'tfft[serve]' has what it takes"
        )
        return 0
    path, count = folder / FILE, 0
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for batch in batches(inputs, rows, sizes):
            for make in _MADE.values():
                record = make(inputs, batch)
                if len(record) <= LARGEST:
                    writer.write(record)
                    count += 1
    return count


def batches(
    inputs: Inputs, rows: Sequence[tuple[Any, ...]], sizes: Sequence[int]
) -> Iterator[list[tuple[Any, ...]]]:
    """Of each size one of the shortest rows, one of middling and one of the longest."""
    ordered = sorted(rows, key=inputs.length_hint)
    places = dict.fromkeys((0, len(ordered) // 2, len(ordered) - 1))
    for size in sizes:
        for place in places:
            start = max(0, min(place, len(ordered) - size))
            chosen = ordered[start : start + size]
            yield [chosen[at % len(chosen)] for at in range(size)]


def _predict(name: str, tensors: Mapping[str, Any]) -> bytes:
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.signature_name = name
    for key, value in tensors.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    log_ = prediction_log_pb2.PredictLog(request=request)
    return bytes(prediction_log_pb2.PredictionLog(predict_log=log_).SerializeToString())


def _raw(inputs: Inputs, rows: Sequence[tuple[Any, ...]]) -> bytes:
    columns = zip(inputs.columns, zip(*rows, strict=True), strict=True)
    return _predict(RAW, {name: np.array(list(map(_bytes, c)), object) for name, c in columns})


def _tensors(inputs: Inputs, rows: Sequence[tuple[Any, ...]]) -> bytes:
    return _predict("tensors", padded(inputs, inputs.batch(*zip(*rows, strict=True))))


def _serialized(inputs: Inputs, rows: Sequence[tuple[Any, ...]]) -> bytes:
    made = [example(inputs.columns, row) for row in rows]
    return _predict("serialized", {"examples": np.array(made, object)})


def _classify(inputs: Inputs, rows: Sequence[tuple[Any, ...]]) -> bytes:
    from tensorflow_serving.apis import classification_pb2, prediction_log_pb2

    request = classification_pb2.ClassificationRequest()
    request.model_spec.signature_name = "classify"
    for row in rows:
        request.input.example_list.examples.add().ParseFromString(example(inputs.columns, row))
    log_ = prediction_log_pb2.ClassifyLog(request=request)
    return bytes(prediction_log_pb2.PredictionLog(classify_log=log_).SerializeToString())


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


# signature -> what makes a request to it
_MADE: Mapping[str, Callable[[Inputs, Sequence[tuple[Any, ...]]], bytes]] = {
    RAW: _raw,
    "tensors": _tensors,
    "serialized": _serialized,
    **dict.fromkeys(METHODS, _classify),
}
