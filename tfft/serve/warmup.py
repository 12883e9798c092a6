"""Replays the requests that an export carries, before it is served, as TF Serving does: what is
done at first calls is done by then (saved_model_warmup.cc)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from tfft import log
from tfft.errors import UserError
from tfft.serve import examples
from tfft.serve.failure import Failure
from tfft.serve.loaded import Arrays, Loaded, Signature

FILE = Path("assets.extra") / "tf_serving_warmup_requests"
MOST = 1000  # records, as TF Serving takes


def replay(loaded: Loaded) -> None:
    """Run all requests of the file, if there is one.

    Raises:
        UserError: one of them is not answered; TF Serving would not serve the model either.
    """
    count = 0
    for at, (signature, inputs) in enumerate(requests(loaded), 1):
        try:
            signature.check(inputs)
            signature.answer(inputs)
        except Failure as failure:
            raise UserError(f"{loaded.folder / FILE}: record {at}: {failure.message}") from None
        count = at
    if count:
        log.say(f"warmed up with {count} requests")


def requests(loaded: Loaded) -> Iterator[tuple[Signature, Arrays]]:
    """What the file asks.

    Raises:
        UserError: it holds something else, or too much.
    """
    path = loaded.folder / FILE
    if not path.is_file():
        return
    at = 0
    try:
        for at, record in enumerate(tf.data.TFRecordDataset(str(path)).as_numpy_iterator(), 1):
            if at > MOST:
                raise UserError(f"{path}: holds more than {MOST} requests")
            yield _asked(loaded, prediction_log_pb2.PredictionLog.FromString(record), at)
        whole = at > 0
    except tf.errors.DataLossError:
        whole = False
    if not whole:
        raise UserError(f"{path}: is no TFRecord file, or is cut off")


def _asked(loaded: Loaded, entry: Any, at: int) -> tuple[Signature, Arrays]:
    kind = entry.WhichOneof("log_type")
    try:
        if kind == "predict_log":
            asked = entry.predict_log.request
            arrays = {name: tf.make_ndarray(proto) for name, proto in asked.inputs.items()}
            return loaded.signature(asked.model_spec.signature_name), arrays
        if kind in ("classify_log", "regress_log"):
            asked = getattr(entry, kind).request
            signature = loaded.signature(asked.model_spec.signature_name)
            return signature, examples.serialized(examples.merged(asked.input))
    except Failure as failure:
        raise UserError(f"{loaded.folder / FILE}: record {at}: {failure.message}") from None
    raise UserError(f"{loaded.folder / FILE}: record {at}: is a {kind}, not a request")
