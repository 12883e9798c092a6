"""TF Serving's gRPC interface: PredictionService and ModelService."""

from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import any_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tfft import log
from tfft.serve import examples
from tfft.serve.batching import Batcher
from tfft.serve.failure import Failure, invalid
from tfft.serve.loaded import Arrays, Loaded, Signature
from tfft.serve.versions import Versions

CALLS = 8  # requests that are read at once


def start(
    versions: Versions, batcher: Batcher, address: str, most_bytes: int, seconds: float
) -> tuple[grpc.Server, int]:
    """A server that listens, and its port; 0 where it cannot."""
    server = grpc.server(
        futures.ThreadPoolExecutor(CALLS, thread_name_prefix="grpc"),
        options=[("grpc.max_receive_message_length", most_bytes), ("grpc.so_reuseport", 0)],
    )
    prediction = _Prediction(versions, batcher, seconds)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(prediction, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Model(versions), server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:
        return server, 0
    if port:
        server.start()
    return server, port


def _told(call: Callable[[Any, Any], Any]) -> Callable[[Any, Any, grpc.ServicerContext], Any]:
    """A failure becomes gRPC's status."""

    def method(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return call(self, request)
        except Failure as failure:
            context.abort(grpc.StatusCode[failure.code], failure.message)
        except TimeoutError:
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no answer in time")
        except Exception as error:  # ours: the server stays up
            log.say(f"{call.__name__}: {type(error).__name__}: {error}")
            context.abort(grpc.StatusCode.INTERNAL, "internal error")

    return method


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, versions: Versions, batcher: Batcher, seconds: float):
        self._versions, self._batcher, self._seconds = versions, batcher, seconds

    @_told
    def Predict(self, request: Any) -> Any:
        loaded, spec = _find(self._versions, request.model_spec)
        signature = loaded.signature(spec.signature_name)
        wanted = set(request.output_filter)
        strange = sorted(wanted - set(signature.outputs))
        if strange:
            raise invalid(
                f"output tensor alias not found in signature: {strange[0]} Outputs expected to be "
                f"in the set {{{','.join(signature.outputs)}}}."
            )
        found = self._run(signature, {k: _array(k, v) for k, v in request.inputs.items()})
        reply = predict_pb2.PredictResponse(model_spec=spec)
        for name, value in found.items():
            if not wanted or name in wanted:
                reply.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return reply

    @_told
    def Classify(self, request: Any) -> Any:
        result, spec = self._classified(request.model_spec, request.input)
        return classification_pb2.ClassificationResponse(model_spec=spec, result=result)

    @_told
    def Regress(self, request: Any) -> Any:
        result, spec = self._regressed(request.model_spec, request.input)
        return regression_pb2.RegressionResponse(model_spec=spec, result=result)

    @_told
    def MultiInference(self, request: Any) -> Any:
        if not request.tasks:
            raise invalid("Inference request is empty")
        reply = inference_pb2.MultiInferenceResponse()
        for task in request.tasks:
            one = reply.results.add()
            if task.method_name == examples.METHODS["classify"][1]:
                result, spec = self._classified(task.model_spec, request.input)
                one.classification_result.CopyFrom(result)
            elif task.method_name == examples.METHODS["regress"][1]:
                result, spec = self._regressed(task.model_spec, request.input)
                one.regression_result.CopyFrom(result)
            else:
                raise Failure("UNIMPLEMENTED", f"Unsupported signature: {task.method_name}")
            one.model_spec.CopyFrom(spec)
        return reply

    @_told
    def GetModelMetadata(self, request: Any) -> Any:
        if list(request.metadata_field) != ["signature_def"]:
            fields = ", ".join(request.metadata_field) or "none"
            raise invalid(f"Metadata field must be signature_def. Received: {fields}")
        loaded, spec = _find(self._versions, request.model_spec)
        reply = get_model_metadata_pb2.GetModelMetadataResponse(model_spec=spec)
        told = get_model_metadata_pb2.SignatureDefMap(signature_def=loaded.metadata)
        packed = any_pb2.Any()
        packed.Pack(told)
        reply.metadata["signature_def"].CopyFrom(packed)
        return reply

    def _classified(self, spec: Any, given: Any) -> tuple[Any, Any]:
        found, spec = self._of_examples(spec, given, "classify")
        result = classification_pb2.ClassificationResult()
        for row in examples.classes(found):
            classes = result.classifications.add().classes
            for label, score in row:
                classes.add(label=label, score=score)
        return result, spec

    def _regressed(self, spec: Any, given: Any) -> tuple[Any, Any]:
        found, spec = self._of_examples(spec, given, "regress")
        result = regression_pb2.RegressionResult()
        for value in examples.values(found):
            result.regressions.add(value=value)
        return result, spec

    def _of_examples(self, spec: Any, given: Any, verb: str) -> tuple[Arrays, Any]:
        loaded, spec = _find(self._versions, spec)
        signature = loaded.signature(spec.signature_name)
        examples.check(signature, verb)
        return self._run(signature, examples.serialized(examples.merged(given))), spec

    def _run(self, signature: Signature, inputs: Arrays) -> Arrays:
        answer = self._batcher.submit(signature, inputs)
        try:
            return answer.result(self._seconds)
        finally:
            answer.cancel()  # where it was given up before its turn came


class _Model(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, versions: Versions):
        self._versions = versions

    @_told
    def GetModelStatus(self, request: Any) -> Any:
        states, name = self._versions.known(), request.model_spec.name
        if name != self._versions.name:
            raise Failure("NOT_FOUND", f"Could not find any versions of model {name}")
        version = _version(self._versions, request.model_spec)
        reply = get_model_status_pb2.GetModelStatusResponse()
        for number, state in states.items():
            if version in (None, number):
                kind = get_model_status_pb2.ModelVersionStatus.State.Value(state)
                reply.model_version_status.add(version=number, state=kind)
        if not reply.model_version_status:
            raise Failure("NOT_FOUND", f"Could not find version {version} of model {name}")
        return reply


def _find(versions: Versions, spec: Any) -> tuple[Loaded, Any]:
    """The version that a request names, and how a reply names it."""
    if spec.name != versions.name:
        number = f"Specific({spec.name}, {spec.version.value})"
        kind = number if spec.HasField("version") else f"Latest({spec.name})"
        raise Failure("NOT_FOUND", f"Servable not found for request: {kind}")
    label = spec.version_label if spec.HasField("version_label") else None
    version = spec.version.value if spec.HasField("version") else None
    loaded = versions.find(version, label)
    name = spec.signature_name or "serving_default"
    told = model_pb2.ModelSpec(name=spec.name, signature_name=name)
    told.version.value = loaded.version
    return loaded, told


def _version(versions: Versions, spec: Any) -> int | None:
    if spec.HasField("version_label"):
        return versions.find(None, spec.version_label).version
    return spec.version.value if spec.HasField("version") else None


def _array(name: str, proto: Any) -> np.ndarray:
    try:
        found: np.ndarray = tf.make_ndarray(proto)
    except (TypeError, ValueError, AttributeError) as error:
        raise invalid(f"input {name}: is no tensor: {error}") from None
    return found
