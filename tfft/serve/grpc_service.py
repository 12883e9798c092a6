"""TF Serving's gRPC interface: PredictionService and ModelService."""

from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
from google.protobuf import any_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

from tfft.serve import calls
from tfft.serve.batching import Batcher
from tfft.serve.failure import Failure, invalid
from tfft.serve.loaded import Arrays, Loaded, Signature
from tfft.serve.versions import ModelSpec, Versions
from tfft.utils import console

CALLS = 8  # requests that are read at once


def start(
    versions: Versions, batcher: Batcher, address: str, most_bytes: int, seconds: float
) -> tuple[grpc.Server, int]:
    """Return a server that listens, and its port; 0 where it cannot."""
    server = grpc.server(
        futures.ThreadPoolExecutor(CALLS, thread_name_prefix="grpc"),
        options=[("grpc.max_receive_message_length", most_bytes), ("grpc.so_reuseport", 0)],
    )
    prediction = _Prediction(versions, batcher, most_bytes, seconds)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(prediction, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Model(versions), server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:
        return server, 0
    if port:
        server.start()
    return server, port


def _with_status(
    method: Callable[[Any, Any], Any],
) -> Callable[[Any, Any, grpc.ServicerContext], Any]:
    """Return a method whose failures become gRPC's status."""

    def call(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return method(self, request)
        except Failure as failure:
            context.abort(grpc.StatusCode[failure.code], failure.message)
        except TimeoutError:
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no answer in time")
        except Exception as error:  # a fault of this server, which keeps running
            console.log(f"{method.__name__}: {type(error).__name__}: {error}")
            context.abort(grpc.StatusCode.INTERNAL, "internal error")

    return call


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, versions: Versions, batcher: Batcher, most_bytes: int, seconds: float):
        self._versions, self._batcher = versions, batcher
        self._most_bytes, self._seconds = most_bytes, seconds

    @_with_status
    def Predict(self, request: Any) -> Any:
        return calls.predict(self._find(request), request, self._run, self._most_bytes)

    @_with_status
    def Classify(self, request: Any) -> Any:
        return calls.classify(self._find(request), request, self._run, self._most_bytes)

    @_with_status
    def Regress(self, request: Any) -> Any:
        return calls.regress(self._find(request), request, self._run, self._most_bytes)

    @_with_status
    def MultiInference(self, request: Any) -> Any:
        spec = request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()
        loaded = self._versions.find(_model(spec))
        return calls.multi_inference(loaded, request, self._run, self._most_bytes)

    @_with_status
    def GetModelMetadata(self, request: Any) -> Any:
        _check_spec(request)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field} is not supported")
        loaded = self._find(request)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = loaded.version
        signatures = any_pb2.Any()
        signatures.Pack(get_model_metadata_pb2.SignatureDefMap(signature_def=loaded.metadata))
        response.metadata["signature_def"].CopyFrom(signatures)
        return response

    def _find(self, request: Any) -> Loaded:
        _check_spec(request)
        return self._versions.find(_model(request.model_spec))

    def _run(self, signature: Signature, inputs: Arrays) -> Arrays:
        answer = self._batcher.submit(signature, inputs)
        try:
            return answer.result(self._seconds)
        finally:
            answer.cancel()  # where it was given up before its turn came


class _Model(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, versions: Versions):
        self._versions = versions

    @_with_status
    def GetModelStatus(self, request: Any) -> Any:
        _check_spec(request)
        return self._versions.status(_model(request.model_spec))

    @_with_status
    def HandleReloadConfigRequest(self, request: Any) -> Any:
        self._versions.reload(request.config)
        return model_management_pb2.ReloadConfigResponse(status={})


def _check_spec(request: Any) -> None:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")


def _model(spec: Any) -> ModelSpec:
    return ModelSpec(
        spec.name,
        spec.version.value if spec.HasField("version") else None,
        spec.version_label if spec.HasField("version_label") else None,
    )
