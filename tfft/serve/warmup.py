"""Replay the warm-up requests of an export before it is served, as TF Serving does.

They trigger the tracing and initialization of first calls (saved_model_warmup.cc).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from tfft.serve import calls
from tfft.serve.failure import Failure, invalid
from tfft.serve.loaded import LoadedVersion, Signature
from tfft.utils import console

FILE = Path("assets.extra") / "tf_serving_warmup_requests"
MAX_RECORDS = 1000  # records of a file, TF Serving's limit
MAX_RECORD_BYTES = 1 << 30  # memory of one record's tensors

_CALLS = {
    "predict_log": calls.predict,
    "classify_log": calls.classify,
    "regress_log": calls.regress,
    "multi_inference_log": calls.multi_inference,
}


def replay(loaded: LoadedVersion, run: calls.Run = Signature.run) -> None:
    """Run all warm-up requests of a version, if it has any.

    Args:
        loaded: the version.
        run: computes a signature's outputs.

    Raises:
        Failure: a request fails; TF Serving would not serve the version either.
    """
    count = 0
    for count, entry in enumerate(records(loaded.folder / FILE), 1):
        kind = entry.WhichOneof("log_type")
        try:
            if kind in _CALLS:
                _CALLS[kind](loaded, getattr(entry, kind).request, run, MAX_RECORD_BYTES)
            elif kind is not None:
                number = entry.DESCRIPTOR.fields_by_name[kind].number
                raise Failure("UNIMPLEMENTED", f"Unsupported log_type for warmup: {number}")
        except Failure as failure:
            message = f"{loaded.folder / FILE}: record {count}: {failure.message}"
            raise Failure(failure.code, message) from None
    if count:
        console.log(f"warmed up with {count} requests")


def records(path: Path) -> Iterator[Any]:
    """Yield the PredictionLogs of a file; nothing if the file does not exist.

    Raises:
        Failure: the file has other records, more than `MAX_RECORDS`, or is cut off.
    """
    if not path.is_file():
        return
    count = 0
    try:
        for count, record in enumerate(tf.data.TFRecordDataset(str(path)).as_numpy_iterator(), 1):
            if count > MAX_RECORDS:
                raise invalid(
                    f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {path}"
                )
            yield prediction_log_pb2.PredictionLog.FromString(record)
    except DecodeError:
        raise invalid(f"{path}: record {count} is not a PredictionLog") from None
    except tf.errors.DataLossError:
        raise Failure("DATA_LOSS", f"{path}: must be a complete TFRecord file") from None
