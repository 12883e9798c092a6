"""A SavedModel in memory: its signatures, called with arrays."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401 -- registers its ops, which TF Serving links
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

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
    """A function of the model.

    Attributes:
        definition: as the file has it.
        call: TensorFlow's function.
    """

    name: str
    definition: meta_graph_pb2.SignatureDef
    inputs: Mapping[str, Info]
    outputs: Mapping[str, Info]
    call: Any

    def check_names(self, names: Any) -> None:
        """Check that a request has the signature's inputs, and no others.

        Raises:
            Failure: it has not, in the words of TF Serving's predict_util.cc.
        """
        names, own = set(names), set(self.inputs)
        missing = sorted(own - names)
        if len(names) != len(own):
            raise invalid(
                f"input size does not match signature: {len(names)}!={len(own)} "
                f"len({_set(names)}) != len({_set(own)}). Sent extra: {_set(names - own)}. "
                f"Missing but required: {_set(missing)}."
            )
        if missing:
            feed = self.definition.inputs[missing[0]].name
            raise invalid(
                f"Signature input alias: {missing[0]}(feed name: {feed}) not found in request and "
                "no default value provided. Inputs expected to be in the request "
                f"{_set(names)}, or default input alias set: "
            )

    def batch_rows(self, arrays: Mapping[str, np.ndarray]) -> int | None:
        """Return the number of rows of a request; None: it has no batch dimension that others
        may be joined along, or does not fit the signature's shapes, which the graph may still take.
        """
        sizes = set()
        for name, array in arrays.items():
            shape = self.inputs[name].shape
            if not shape or shape[0] is not None or len(shape) != array.ndim:
                return None
            if any(own not in (None, size) for own, size in zip(shape, array.shape, strict=True)):
                return None
            sizes.add(len(array))
        return sizes.pop() if len(sizes) == 1 else None

    def answer(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        """Return the outputs. As in TF Serving, the graph alone decides on types and shapes: a
        TensorFlow function would refuse shapes that the graph takes.

        Raises:
            Failure: the graph refuses the inputs.
        """
        inputs = [  # in the order in which functions take them
            tf.constant(array, tf.string if array.dtype == object else None)
            for _, array in sorted(arrays.items())
        ]
        types = [output.dtype for output in self.call.outputs]
        try:
            values = tf.raw_ops.StatefulPartitionedCall(
                args=[*inputs, *self.call.captured_inputs], Tout=types, f=self.call
            )
            outputs = tf.nest.pack_sequence_as(self.call.structured_outputs, values)
            return {  # a scalar string's numpy() is not an array
                name: np.array(value.numpy(), object if value.dtype == tf.string else None)
                for name, value in outputs.items()
            }
        except tf.errors.OpError as error:
            raise Failure(_CODES.get(error.error_code, "UNKNOWN"), _line(error.message)) from None
        except UnicodeDecodeError as error:
            # TensorFlow quotes the bytes that it could not parse and fails to raise its own error.
            message = _line(error.object.decode("utf-8", "replace"))
            raise invalid(message) from None


class Loaded:
    """One version of a model.

    Args:
        folder: with `saved_model.pb`.

    Attributes:
        metadata: the signatures as the file has them.
        signatures: those that can be called, by name.

    Raises:
        Failure: it holds no SavedModel, or one that this TensorFlow cannot load.
    """

    def __init__(self, folder: Path, version: int):
        self.folder, self.version = folder, version
        saved = saved_model_pb2.SavedModel()
        try:
            saved.ParseFromString((folder / "saved_model.pb").read_bytes())
            self._model = tf.saved_model.load(str(folder))
        except Exception as error:  # of a broken file TensorFlow raises many kinds
            code = _CODES.get(getattr(error, "error_code", None), "UNKNOWN")
            raise Failure(code, f"{folder}: cannot be loaded: {_line(str(error))}") from None
        graphs = [g for g in saved.meta_graphs if "serve" in g.meta_info_def.tags]
        defined = graphs[0].signature_def if graphs else {}
        self.metadata: dict[str, meta_graph_pb2.SignatureDef] = dict(defined)
        self.signatures = {
            name: Signature(name, d, _infos(d.inputs), _infos(d.outputs), call)
            for name, d in self.metadata.items()
            if (call := self._model.signatures.get(name)) is not None
        }

    def signature(self, name: str, missing: Callable[[str], Failure]) -> Signature:
        """Return a signature by its name; the empty name is the default's.

        Args:
            missing: the failure where there is none of that name; each call has its own.
        """
        signature = self.signatures.get(name or DEFAULT)
        if signature is None:
            raise missing(name or DEFAULT)
        return signature


_CODES: dict[int | None, str] = {
    tf.errors.INVALID_ARGUMENT: "INVALID_ARGUMENT",
    tf.errors.NOT_FOUND: "NOT_FOUND",
    tf.errors.OUT_OF_RANGE: "OUT_OF_RANGE",
    tf.errors.RESOURCE_EXHAUSTED: "RESOURCE_EXHAUSTED",
    tf.errors.FAILED_PRECONDITION: "FAILED_PRECONDITION",
    tf.errors.UNIMPLEMENTED: "UNIMPLEMENTED",
    tf.errors.INTERNAL: "INTERNAL",
    tf.errors.CANCELLED: "CANCELLED",
    tf.errors.DEADLINE_EXCEEDED: "DEADLINE_EXCEEDED",
    tf.errors.DATA_LOSS: "DATA_LOSS",
}


def type_name(dtype: tf.DType) -> str:
    """Return a type's name in C++, which TF Serving's messages have."""
    names = {tf.float32: "float", tf.float64: "double", tf.float16: "half"}
    return names.get(dtype, dtype.name)


def _infos(tensors: Mapping[str, meta_graph_pb2.TensorInfo]) -> dict[str, Info]:
    def shape(info: meta_graph_pb2.TensorInfo) -> tuple[int | None, ...] | None:
        if info.tensor_shape.unknown_rank:
            return None
        return tuple(d.size if d.size >= 0 else None for d in info.tensor_shape.dim)

    return {n: Info(tf.dtypes.as_dtype(i.dtype), shape(i)) for n, i in tensors.items()}


def _set(names: Any) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def _line(text: str) -> str:
    """Return the first line of an error, without the names of the nodes it passed through."""
    text = re.sub(r"\{\{.*?\}\} ?| \[Op:.*?\]( name: ?)?", "", str(text))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else "unknown error"
