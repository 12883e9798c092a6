"""Replay the requests that an export carries before it is served, as TF Serving does, so that what
first calls do is done by then (saved_model_warmup.cc)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from tfft.serve import calls
from tfft.serve.failure import Failure, invalid
from tfft.serve.loaded import Loaded, Signature
from tfft.utils import console

FILE = Path("assets.extra") / "tf_serving_warmup_requests"
MOST = 1000  # records, as TF Serving takes
MOST_BYTES = 1 << 30  # of one record's tensors

_CALLS = {
    "predict_log": calls.predict,
    "classify_log": calls.classify,
    "regress_log": calls.regress,
    "multi_inference_log": calls.multi_inference,
}


def replay(loaded: Loaded, run: calls.Run = Signature.answer) -> None:
    """Run all requests of the file, if there is one.

    Raises:
        Failure: one of them is not answered; TF Serving would not serve the model either.
    """
    count = 0
    for count, entry in enumerate(records(loaded.folder / FILE), 1):
        kind = entry.WhichOneof("log_type")
        try:
            if kind in _CALLS:
                _CALLS[kind](loaded, getattr(entry, kind).request, run, MOST_BYTES)
            elif kind is not None:
                number = entry.DESCRIPTOR.fields_by_name[kind].number
                raise Failure("UNIMPLEMENTED", f"Unsupported log_type for warmup: {number}")
        except Failure as failure:
            text = f"{loaded.folder / FILE}: record {count}: {failure.message}"
            raise Failure(failure.code, text) from None
    if count:
        console.log(f"warmed up with {count} requests")


def records(path: Path) -> Iterator[Any]:
    """Yield the PredictionLogs of a file; nothing where there is none.

    Raises:
        Failure: it holds something else, or too much.
    """
    if not path.is_file():
        return
    count = 0
    try:
        for count, record in enumerate(tf.data.TFRecordDataset(str(path)).as_numpy_iterator(), 1):
            if count > MOST:
                raise invalid(f"Number of warmup records exceeds the maximum ({MOST}) at {path}")
            yield prediction_log_pb2.PredictionLog.FromString(record)
    except DecodeError:
        raise invalid(f"{path}: record {count} is not a PredictionLog") from None
    except tf.errors.DataLossError:
        raise Failure("DATA_LOSS", f"{path}: is no TFRecord file, or is cut off") from None
