"""A SavedModel in memory: its signatures, called with arrays."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401 -- registers its ops, which TF Serving links
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from tfft.errors import UserError
from tfft.serve.failure import Failure, invalid

Arrays = dict[str, np.ndarray]
DEFAULT = "serving_default"


@dataclass(frozen=True)
class Info:
    """An input or an output of a signature; None in the shape: of any size."""

    dtype: tf.DType
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Signature:
    """One of a model's functions."""

    name: str
    method: str
    inputs: Mapping[str, Info]
    outputs: Mapping[str, Info]
    call: Callable[..., Mapping[str, tf.Tensor]]

    def check(self, given: Mapping[str, np.ndarray]) -> None:
        """The inputs are those of the signature, each with a fitting type and shape.

        Raises:
            Failure: they are not, in the words of TF Serving's predict_util.cc.
        """
        strange = sorted(set(given) - set(self.inputs))
        missing = sorted(set(self.inputs) - set(given))
        if len(given) != len(self.inputs):
            raise invalid(
                f"input size does not match signature: {len(given)}!={len(self.inputs)} "
                f"len({_set(given)}) != len({_set(self.inputs)}). Sent extra: {_set(strange)}. "
                f"Missing but required: {_set(missing)}."
            )
        if strange:
            raise invalid(
                f"input tensor alias not found in signature: {strange[0]}. Inputs expected to be "
                f"in the set {_set(self.inputs)}."
            )
        for name, info in self.inputs.items():
            _check(name, info, given[name])

    def answer(self, given: Mapping[str, np.ndarray]) -> Arrays:
        """The outputs for inputs that were checked.

        Raises:
            Failure: the graph refuses them.
        """
        try:
            tensors = {k: tf.constant(v, self.inputs[k].dtype) for k, v in given.items()}
            return {name: value.numpy() for name, value in self.call(**tensors).items()}
        except tf.errors.OpError as error:
            raise Failure(_CODES.get(error.error_code, "UNKNOWN"), _line(error.message)) from None


class Loaded:
    """One version of a model.

    Args:
        folder: with `saved_model.pb`.

    Attributes:
        metadata: the signatures as the file has them.

    Raises:
        UserError: it holds no SavedModel, or one that this TensorFlow cannot load.
    """

    def __init__(self, folder: Path, version: int):
        self.folder, self.version = folder, version
        saved = saved_model_pb2.SavedModel()
        try:
            saved.ParseFromString((folder / "saved_model.pb").read_bytes())
            self._model = tf.saved_model.load(str(folder))
        except Exception as error:  # of a broken file TensorFlow raises many kinds
            raise UserError(f"{folder}: cannot be loaded: {_line(str(error))}") from None
        graphs = [g for g in saved.meta_graphs if "serve" in g.meta_info_def.tags]
        defined = graphs[0].signature_def if graphs else {}
        self.metadata: dict[str, meta_graph_pb2.SignatureDef] = dict(defined)
        self.signatures = {
            name: Signature(name, d.method_name, _infos(d.inputs), _infos(d.outputs), call)
            for name, d in self.metadata.items()
            if (call := self._model.signatures.get(name)) is not None
        }

    def signature(self, name: str) -> Signature:
        """One by its name; the empty name is the default's.

        Raises:
            Failure: there is none of that name.
        """
        found = self.signatures.get(name or DEFAULT)
        if found is None:
            raise invalid(f'Serving signature name: "{name or DEFAULT}" not found in signature def')
        return found


_CODES: dict[int, str] = {
    tf.errors.INVALID_ARGUMENT: "INVALID_ARGUMENT",
    tf.errors.NOT_FOUND: "NOT_FOUND",
    tf.errors.OUT_OF_RANGE: "OUT_OF_RANGE",
    tf.errors.RESOURCE_EXHAUSTED: "RESOURCE_EXHAUSTED",
    tf.errors.FAILED_PRECONDITION: "FAILED_PRECONDITION",
    tf.errors.UNIMPLEMENTED: "UNIMPLEMENTED",
    tf.errors.INTERNAL: "INTERNAL",
    tf.errors.CANCELLED: "CANCELLED",
    tf.errors.DEADLINE_EXCEEDED: "DEADLINE_EXCEEDED",
}


def _infos(tensors: Mapping[str, meta_graph_pb2.TensorInfo]) -> dict[str, Info]:
    def shape(info: meta_graph_pb2.TensorInfo) -> tuple[int | None, ...] | None:
        if info.tensor_shape.unknown_rank:
            return None
        return tuple(d.size if d.size >= 0 else None for d in info.tensor_shape.dim)

    return {n: Info(tf.dtypes.as_dtype(i.dtype), shape(i)) for n, i in tensors.items()}


def _check(name: str, info: Info, value: np.ndarray) -> None:
    given = tf.dtypes.as_dtype(value.dtype) if value.dtype != object else tf.string
    if given != info.dtype:
        raise invalid(f"input {name}: expected {info.dtype.name}, received {given.name}")
    if info.shape is None:
        return
    fits = len(value.shape) == len(info.shape) and all(
        wanted in (None, size) for wanted, size in zip(info.shape, value.shape, strict=True)
    )
    if not fits:
        wanted = ",".join("?" if size is None else str(size) for size in info.shape)
        raise invalid(
            f"input {name}: expected shape [{wanted}], received [{','.join(map(str, value.shape))}]"
        )


def _set(names: Any) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def _line(text: str) -> str:
    """The first line of an error, without the graph's nodes."""
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return lines[0] if lines else "unknown error"
