"""Write `assets.extra/tf_serving_warmup_requests`, which TF Serving runs before serving a version.

The requests cover every signature with several batch sizes and with short, medium and long rows, so
that no client waits for tracing. TF Serving runs them through the batching session: a request with
more rows than `max_batch_size` would keep the version from loading, so the batch sizes are among
`serving_config.SIZES`.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfft.export.signatures import RAW, Servable, example, names, padded
from tfft.preprocess import Inputs
from tfft.utils import console

FILE = Path("assets.extra") / "tf_serving_warmup_requests"
MAX_REQUEST_BYTES = 4 << 20  # larger requests are skipped; smaller ones warm up the same functions


def write(
    folder: Path, servable: Servable, rows: Sequence[tuple[Any, ...]], sizes: Sequence[int]
) -> int:
    """Write the warm-up requests of a SavedModel, and return their number.

    Without tensorflow-serving-api, which has the messages, none are written.

    Args:
        folder: the folder of the SavedModel.
        servable: the exported model.
        rows: raw rows, as a client sends them.
        sizes: batch sizes.
    """
    if importlib.util.find_spec("tensorflow_serving") is None:
        console.log("export: no warm-up requests written; to write them: pip install 'tfft[serve]'")
        return 0
    path, count, inputs = folder / FILE, 0, servable.inputs
    builders = [
        _REQUEST_BUILDERS[name] for name in names(servable.task, servable.labels, servable.inputs)
    ]
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for batch in batches(inputs, rows, sizes):
            for build in builders:
                record = build(inputs, batch)
                if len(record) <= MAX_REQUEST_BYTES:
                    writer.write(record)
                    count += 1
    return count


def batches(
    inputs: Inputs, rows: Sequence[tuple[Any, ...]], sizes: Sequence[int]
) -> Iterator[list[tuple[Any, ...]]]:
    """Yield, for each size, a batch of the shortest, of medium and of the longest rows."""
    sorted_rows = sorted(rows, key=inputs.length_hint)
    # Fewer than three positions if there are only one or two rows.
    positions = dict.fromkeys((0, len(sorted_rows) // 2, len(sorted_rows) - 1))
    for size in sizes:
        for position in positions:
            start = max(0, min(position, len(sorted_rows) - size))
            window = sorted_rows[start : start + size]
            yield [window[i % len(window)] for i in range(size)]


def _predict(name: str, tensors: Mapping[str, Any]) -> bytes:
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.signature_name = name
    for key, value in tensors.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    log = prediction_log_pb2.PredictLog(request=request)
    return bytes(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())


def _raw(inputs: Inputs, rows: Sequence[tuple[Any, ...]]) -> bytes:
    columns = zip(inputs.columns, zip(*rows, strict=True), strict=True)
    return _predict(RAW, {name: np.array(list(map(_bytes, c)), object) for name, c in columns})


def _tensors(inputs: Inputs, rows: Sequence[tuple[Any, ...]]) -> bytes:
    return _predict("tensors", padded(inputs, inputs.batch(*zip(*rows, strict=True))))


def _serialized(inputs: Inputs, rows: Sequence[tuple[Any, ...]]) -> bytes:
    examples = [example(inputs.columns, row) for row in rows]
    return _predict("serialized", {"examples": np.array(examples, object)})


def _classify(inputs: Inputs, rows: Sequence[tuple[Any, ...]]) -> bytes:
    from tensorflow_serving.apis import classification_pb2, prediction_log_pb2

    request = classification_pb2.ClassificationRequest()
    request.model_spec.signature_name = "classify"
    for row in rows:
        request.input.example_list.examples.add().ParseFromString(example(inputs.columns, row))
    log = prediction_log_pb2.ClassifyLog(request=request)
    return bytes(prediction_log_pb2.PredictionLog(classify_log=log).SerializeToString())


def _regress(inputs: Inputs, rows: Sequence[tuple[Any, ...]]) -> bytes:
    from tensorflow_serving.apis import prediction_log_pb2, regression_pb2

    request = regression_pb2.RegressionRequest()
    request.model_spec.signature_name = "regress"
    for row in rows:
        request.input.example_list.examples.add().ParseFromString(example(inputs.columns, row))
    log = prediction_log_pb2.RegressLog(request=request)
    return bytes(prediction_log_pb2.PredictionLog(regress_log=log).SerializeToString())


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


# signature -> builds a serialized PredictionLog from raw rows
_REQUEST_BUILDERS: Mapping[str, Callable[[Inputs, Sequence[tuple[Any, ...]]], bytes]] = {
    RAW: _raw,
    "tensors": _tensors,
    "serialized": _serialized,
    "classify": _classify,
    "regress": _regress,
}
