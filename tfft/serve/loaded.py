"""Load a SavedModel and call its signatures with arrays."""

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
class TensorInfo:
    """Type and shape of an input or output of a signature.

    Attributes:
        dtype: the type.
        shape: size of each axis, None for any size; None if the rank is unknown.
    """

    dtype: tf.DType
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Signature:
    """A signature of the model.

    Attributes:
        name: its name.
        definition: the SignatureDef of the file.
        inputs: input name -> type and shape.
        outputs: output name -> type and shape.
        call: the TensorFlow function.
    """

    name: str
    definition: meta_graph_pb2.SignatureDef
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    call: Any

    def check_names(self, names: Any) -> None:
        """Check that a request has exactly the inputs of the signature.

        Raises:
            Failure: an input is missing or unknown; the message is that of predict_util.cc.
        """
        names, expected = set(names), set(self.inputs)
        missing = sorted(expected - names)
        # As in predict_util.cc, a wrong number of inputs is reported before a missing name.
        if len(names) != len(expected):
            raise invalid(
                f"input size does not match signature: {len(names)}!={len(expected)} "
                f"len({_set_text(names)}) != len({_set_text(expected)}). Sent extra: "
                f"{_set_text(names - expected)}. Missing but required: {_set_text(missing)}."
            )
        if missing:
            tensor_name = self.definition.inputs[missing[0]].name
            raise invalid(
                f"Signature input alias: {missing[0]}(feed name: {tensor_name}) not found in "
                "request and no default value provided. Inputs expected to be in the request "
                f"{_set_text(names)}, or default input alias set: "
            )

    def batch_rows(self, arrays: Mapping[str, np.ndarray]) -> int | None:
        """Return the number of rows of a request, or None if it cannot be joined with others.

        It cannot be joined without a common batch dimension, or if it does not fit the shapes of
        the signature. The graph may still accept such a request.
        """
        sizes = set()
        for name, array in arrays.items():
            shape = self.inputs[name].shape
            # Only a variable first axis is a batch axis.
            if not shape or shape[0] is not None or len(shape) != array.ndim:
                return None
            if any(
                expected not in (None, size)
                for expected, size in zip(shape, array.shape, strict=True)
            ):
                return None
            sizes.add(len(array))
        return sizes.pop() if len(sizes) == 1 else None

    def run(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        """Run the signature and return its outputs.

        As in TF Serving, only the graph checks types and shapes. Calling the TensorFlow function
        would reject shapes that the graph accepts, hence the raw op.

        Raises:
            Failure: the graph rejects the inputs.
        """
        inputs = [  # sorted by name, the order of a function's arguments
            tf.constant(array, tf.string if array.dtype == object else None)
            for _, array in sorted(arrays.items())
        ]
        dtypes = [output.dtype for output in self.call.outputs]
        try:
            values = tf.raw_ops.StatefulPartitionedCall(
                args=[*inputs, *self.call.captured_inputs], Tout=dtypes, f=self.call
            )
            outputs = tf.nest.pack_sequence_as(self.call.structured_outputs, values)
            return {  # a scalar string's numpy() is not an array
                name: np.array(value.numpy(), object if value.dtype == tf.string else None)
                for name, value in outputs.items()
            }
        except tf.errors.OpError as error:
            raise Failure(
                _STATUS_CODES.get(error.error_code, "UNKNOWN"), _first_line(error.message)
            ) from None
        except UnicodeDecodeError as error:
            # TensorFlow's message quotes the bytes that it could not parse. They are not UTF-8, so
            # building the exception fails.
            message = _first_line(error.object.decode("utf-8", "replace"))
            raise invalid(message) from None


class LoadedVersion:
    """A version of a model in memory.

    Args:
        folder: the folder with `saved_model.pb`.
        version: the version number.

    Attributes:
        metadata: signature name -> SignatureDef, as in the file.
        signatures: the signatures that can be called, by name.

    Raises:
        Failure: the folder contains no SavedModel that this TensorFlow can load.
    """

    def __init__(self, folder: Path, version: int):
        self.folder, self.version = folder, version
        saved_model = saved_model_pb2.SavedModel()
        try:
            # The loaded object lacks the SignatureDefs, with which metadata requests are answered.
            saved_model.ParseFromString((folder / "saved_model.pb").read_bytes())
            self._model = tf.saved_model.load(str(folder))
        except Exception as error:  # TensorFlow raises many types for a broken file
            code = _STATUS_CODES.get(getattr(error, "error_code", None), "UNKNOWN")
            raise Failure(code, f"{folder}: cannot be loaded: {_first_line(str(error))}") from None
        graphs = [graph for graph in saved_model.meta_graphs if "serve" in graph.meta_info_def.tags]
        definitions = graphs[0].signature_def if graphs else {}
        self.metadata: dict[str, meta_graph_pb2.SignatureDef] = dict(definitions)
        self.signatures = {
            name: Signature(
                name,
                definition,
                _tensor_infos(definition.inputs),
                _tensor_infos(definition.outputs),
                call,
            )
            for name, definition in self.metadata.items()
            # Not all can be called: TensorFlow also writes __saved_model_init_op as a signature.
            if (call := self._model.signatures.get(name)) is not None
        }

    def signature(self, name: str, not_found: Callable[[str], Failure]) -> Signature:
        """Return the signature called `name`; "" is the default signature.

        Args:
            name: the requested name.
            not_found: returns the failure for an unknown name, whose message depends on the call.

        Raises:
            Failure: there is no such signature.
        """
        signature = self.signatures.get(name or DEFAULT)
        if signature is None:
            raise not_found(name or DEFAULT)
        return signature


_STATUS_CODES: dict[int | None, str] = {
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
    """Return the C++ name of a type, as it appears in TF Serving's messages."""
    names = {tf.float32: "float", tf.float64: "double", tf.float16: "half"}
    return names.get(dtype, dtype.name)


def _tensor_infos(tensors: Mapping[str, meta_graph_pb2.TensorInfo]) -> dict[str, TensorInfo]:
    def shape(info: meta_graph_pb2.TensorInfo) -> tuple[int | None, ...] | None:
        if info.tensor_shape.unknown_rank:
            return None
        return tuple(d.size if d.size >= 0 else None for d in info.tensor_shape.dim)

    return {n: TensorInfo(tf.dtypes.as_dtype(i.dtype), shape(i)) for n, i in tensors.items()}


def _set_text(names: Any) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def _first_line(text: str) -> str:
    """Return the first line of a TensorFlow error, without the names of graph nodes."""
    # TensorFlow writes {{node NAME}} and [Op:NAME].
    text = re.sub(r"\{\{.*?\}\} ?| \[Op:.*?\]( name: ?)?", "", str(text))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else "unknown error"
