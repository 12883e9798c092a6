"""Serve TF Serving's gRPC interface: PredictionService and ModelService."""

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
from tfft.serve.loaded import Arrays, LoadedVersion, Signature
from tfft.serve.versions import ModelSpec, VersionManager
from tfft.utils import console

MAX_CALLS = 8  # requests that are handled at once


def start(
    versions: VersionManager, batcher: Batcher, address: str, max_bytes: int, timeout: float
) -> tuple[grpc.Server, int]:
    """Start a server.

    Args:
        versions: the versions to serve.
        batcher: computes the requests.
        address: host and port, `HOST:PORT`.
        max_bytes: largest size of a message, and largest memory of its inputs.
        timeout: time to answer a request, in seconds.

    Returns:
        The server and its port; port 0 if the address cannot be bound.
    """
    # gRPC receives 4 MiB by default. so_reuseport=0: a second server on the port must fail, not
    # share the requests.
    server = grpc.server(
        futures.ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="grpc"),
        options=[("grpc.max_receive_message_length", max_bytes), ("grpc.so_reuseport", 0)],
    )
    prediction = _PredictionService(versions, batcher, max_bytes, timeout)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(prediction, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_ModelService(versions), server)
    try:
        port = server.add_insecure_port(address)
    # grpcio raises if the address is in use; earlier releases return port 0.
    except RuntimeError:
        return server, 0
    if port:
        server.start()
    return server, port


def _with_status(
    method: Callable[[Any, Any], Any],
) -> Callable[[Any, Any, grpc.ServicerContext], Any]:
    """Return a method that reports its failures as gRPC status codes."""

    def call(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return method(self, request)
        except Failure as failure:
            context.abort(grpc.StatusCode[failure.code], failure.message)
        except TimeoutError:
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no answer in time")
        except Exception as error:  # a bug of this server, which must keep running
            console.log(f"{method.__name__}: {type(error).__name__}: {error}")
            context.abort(grpc.StatusCode.INTERNAL, "internal error")

    return call


class _PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """PredictionService over the served versions."""

    def __init__(self, versions: VersionManager, batcher: Batcher, max_bytes: int, timeout: float):
        self._versions, self._batcher = versions, batcher
        self._max_bytes, self._timeout = max_bytes, timeout

    @_with_status
    def Predict(self, request: Any) -> Any:
        return calls.predict(self._find(request), request, self._run, self._max_bytes)

    @_with_status
    def Classify(self, request: Any) -> Any:
        return calls.classify(self._find(request), request, self._run, self._max_bytes)

    @_with_status
    def Regress(self, request: Any) -> Any:
        return calls.regress(self._find(request), request, self._run, self._max_bytes)

    @_with_status
    def MultiInference(self, request: Any) -> Any:
        spec = request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()
        loaded = self._versions.find(_model_spec(spec))
        return calls.multi_inference(loaded, request, self._run, self._max_bytes)

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
        packed = any_pb2.Any()
        packed.Pack(get_model_metadata_pb2.SignatureDefMap(signature_def=loaded.metadata))
        response.metadata["signature_def"].CopyFrom(packed)
        return response

    def _find(self, request: Any) -> LoadedVersion:
        _check_spec(request)
        return self._versions.find(_model_spec(request.model_spec))

    def _run(self, signature: Signature, inputs: Arrays) -> Arrays:
        future = self._batcher.submit(signature, inputs)
        try:
            return future.result(self._timeout)
        finally:
            future.cancel()  # removes it from the queue after a timeout


class _ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """ModelService over the served versions."""

    def __init__(self, versions: VersionManager):
        self._versions = versions

    @_with_status
    def GetModelStatus(self, request: Any) -> Any:
        _check_spec(request)
        return self._versions.status(_model_spec(request.model_spec))

    @_with_status
    def HandleReloadConfigRequest(self, request: Any) -> Any:
        self._versions.reload(request.config)
        return model_management_pb2.ReloadConfigResponse(status={})


def _check_spec(request: Any) -> None:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")


def _model_spec(spec: Any) -> ModelSpec:
    return ModelSpec(
        spec.name,
        spec.version.value if spec.HasField("version") else None,
        spec.version_label if spec.HasField("version_label") else None,
    )
