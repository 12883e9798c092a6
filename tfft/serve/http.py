"""Serve TF Serving's REST interface (http_rest_api_handler.cc) with aiohttp.

POST /v1/models/NAME[/versions/N|/labels/L]:predict | :classify | :regress
GET  /v1/models/NAME[/versions/N|/labels/L]             states of the versions
GET  /v1/models/NAME[/versions/N|/labels/L]/metadata    signatures
"""

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import unquote

from aiohttp import web
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2

from tfft.serve import examples, json_tensors, json_text
from tfft.serve.batching import Batcher
from tfft.serve.failure import Failure, invalid
from tfft.serve.loaded import Arrays, LoadedVersion, Signature
from tfft.serve.versions import ModelSpec, VersionManager, version_number
from tfft.utils import console

_MODEL = r"([^/:]+)"
_VERSION = r"(?:/versions/([0-9]+)|/labels/([^/:]+))?"
_PATHS = {  # http_rest_api_util.cc; the last group is the call
    "POST": rf"/v1/models/{_MODEL}{_VERSION}:(classify|regress|predict)",
    "GET": rf"/v1/models(?:/{_MODEL})?{_VERSION}(?:/(metadata))?",
}
NUM_PARSERS = 2  # threads that parse request bodies


@dataclass(frozen=True)
class Limits:
    """Limits for one request.

    Attributes:
        max_body_bytes: largest body, after decompression.
        timeout: time for a request to arrive, and the same time to answer it, in seconds.
    """

    max_body_bytes: int
    timeout: float

    @property
    def max_value_bytes(self) -> int:
        """Largest memory of a request's JSON values, in bytes.

        Short numbers take about five times the bytes of their text.
        """
        return max(json_text.DEFAULT_MAX_BYTES, 5 * self.max_body_bytes)

    @property
    def idle_timeout(self) -> float:
        """Seconds after which a connection without a complete request is closed."""
        return min(30.0, self.timeout)


class _RequestTimeout(Exception):
    """A request that did not arrive in time."""


class Rest:
    """The REST interface of one model.

    Args:
        versions: the versions to serve.
        batcher: computes the requests.
        limits: limits for each request.
    """

    def __init__(self, versions: VersionManager, batcher: Batcher, limits: Limits):
        self._versions, self._batcher, self._limits = versions, batcher, limits
        self._parsers = ThreadPoolExecutor(NUM_PARSERS, thread_name_prefix="json")
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen on an address, and return the port; port 0 binds a free one."""
        app = web.Application(client_max_size=self._limits.max_body_bytes)
        app.router.add_route("*", "/{path:.*}", self._handle)
        # The timeout also covers clients that connect and send nothing.
        self._runner = web.AppRunner(
            app, access_log=None, keepalive_timeout=self._limits.idle_timeout, lingering_time=1.0
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        bound_port: int = self._runner.addresses[0][1]
        return bound_port

    async def stop(self) -> None:
        """Answer the requests that arrived, and close the server."""
        if self._runner is not None:
            await self._runner.cleanup()
        self._parsers.shutdown()

    async def _handle(self, request: web.Request) -> web.Response:
        try:
            return _reply(200, await self._answer(request))
        except Failure as failure:
            return _reply(failure.http, failure.message and json_tensors.error(failure.message))
        # `close`: the rest of the body may still arrive.
        except _RequestTimeout as error:
            return _reply(408, json_tensors.error(str(error)), close=True)
        except TimeoutError:
            text = f"no answer within {self._limits.timeout:g} s"
            return _reply(504, json_tensors.error(text))
        except web.HTTPRequestEntityTooLarge:
            text = f"the request is larger than {self._limits.max_body_bytes:,} bytes"
            return _reply(413, json_tensors.error(text), close=True)
        except (web.RequestPayloadError, web.HTTPException) as error:
            return _reply(400, json_tensors.error(f"Malformed request: {error}"), close=True)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:  # a bug of this server, which must keep running
            console.log(f"{request.method} {request.path}: {type(error).__name__}: {error}")
            return _reply(500, json_tensors.error("internal error"))

    async def _answer(self, request: web.Request) -> str:
        # Still percent-encoded: %2F in a name separates nothing.
        path = request.rel_url.raw_path
        if not path.lower().startswith("/v1/"):
            raise Failure("NOT_FOUND", "Not Found")
        if request.method == "OPTIONS":  # a browser's preflight
            if re.search("https?://", request.headers.get("Origin", "")):
                return ""
            raise Failure("FAILED_PRECONDITION", "")
        model, call = parse_path(request.method, path)
        if call in METHODS:
            body = await self._body(request)
            return await self._run(METHODS[call], model, body)
        if request.method != "GET":
            raise _malformed(request.method, path)
        if not model.name:
            raise invalid("Missing model name in request.")
        if call == "metadata":
            return metadata(model.name, self._versions.find(model))
        return _to_json(self._versions.status(model))

    async def _body(self, request: web.Request) -> bytes:
        try:
            async with asyncio.timeout(self._limits.timeout):
                return await request.read()
        except TimeoutError:
            text = f"the request did not arrive within {self._limits.timeout:g} s"
            raise _RequestTimeout(text) from None

    async def _run(self, method: "Method", model: ModelSpec, body: bytes) -> str:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._limits.timeout):
            # In threads: parsing a large body would block all other connections.
            prepared = await loop.run_in_executor(
                self._parsers, method, self._versions, model, body, self._limits
            )
            future = self._batcher.submit(prepared.signature, prepared.inputs)
            outputs = await asyncio.wrap_future(future)
            return await loop.run_in_executor(self._parsers, prepared.reply, outputs)


def parse_path(http_method: str, path: str) -> tuple[ModelSpec, str]:
    """Return the model that a path names and its call.

    As in TF Serving, paths are matched without regard to case, but the call is case-sensitive.

    Returns:
        The model, and `predict`, `classify` or `regress` for POST, `metadata` or "" for GET.

    Raises:
        Failure: the path is malformed, or its version does not fit in 64 bits.
    """
    pattern = _PATHS.get(http_method)
    match = re.fullmatch(pattern, path, re.IGNORECASE | re.ASCII) if pattern else None
    if match is None:
        raise _malformed(http_method, path)
    name, digits, label, call = match.groups()
    version = None if digits is None else version_number(digits)
    if digits is not None and version is None:
        raise invalid("")  # TF Serving answers without a body
    if http_method == "POST" and call not in METHODS:
        raise _malformed(http_method, path)
    return ModelSpec(unquote(name or ""), version, label and unquote(label)), call or ""


def _malformed(http_method: str, path: str) -> Failure:
    return invalid(f"Malformed request: {http_method} {path}")


@dataclass(frozen=True)
class _PreparedRequest:
    """A parsed request.

    Attributes:
        signature: the signature to run.
        inputs: its inputs.
        reply: converts the outputs to the JSON reply.
    """

    signature: Signature
    inputs: Arrays
    reply: Callable[[Arrays], str]


Method = Callable[[VersionManager, ModelSpec, bytes, Limits], _PreparedRequest]


def _predict(
    versions: VersionManager, model: ModelSpec, body: bytes, limits: Limits
) -> _PreparedRequest:
    # As in TF Serving, bad JSON is reported before an unknown model.
    request = json_tensors.parse(body, limits.max_value_bytes)
    name = json_tensors.signature_name(request)
    signature = versions.find(model).signature(
        name, lambda n: invalid(f'Serving signature name: "{n}" not found in signature def')
    )
    if not signature.inputs:
        raise invalid(f"Failed to get input map for signature: {name or 'DEFAULT'}")
    inputs, form = json_tensors.inputs(request, signature.inputs)
    signature.check_names(inputs)
    return _PreparedRequest(signature, inputs, lambda outputs: json_tensors.outputs(outputs, form))


def _examples(
    method: str, versions: VersionManager, model: ModelSpec, body: bytes, limits: Limits
) -> _PreparedRequest:
    request = json_tensors.parse(body, limits.max_value_bytes)
    name = json_tensors.signature_name(request)
    parsed = examples.from_json(request)
    signature = examples.signature(versions.find(model), name, method)
    inputs = examples.serialize(parsed, limits.max_body_bytes)
    return _PreparedRequest(
        signature,
        inputs,
        lambda outputs: examples.to_json(examples.result(method, outputs, inputs)),
    )


METHODS: dict[str, Method] = {
    "predict": _predict,
    "classify": partial(_examples, "classify"),
    "regress": partial(_examples, "regress"),
}


def metadata(name: str, loaded: LoadedVersion) -> str:
    """Return the JSON reply to a metadata request: the signatures of a version."""
    reply = get_model_metadata_pb2.GetModelMetadataResponse()
    reply.model_spec.name, reply.model_spec.version.value = name, loaded.version
    signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=loaded.metadata)
    return (
        f'{{\n"model_spec":{_to_json(reply.model_spec)},\n'
        f'"metadata": {{"signature_def": {_to_json(signatures)}}}\n}}\n'
    )


def _to_json(message: Any) -> str:
    """Return a protobuf message as JSON."""
    text: str = json_format.MessageToJson(
        message,
        indent=1,
        ensure_ascii=False,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    return text


def _reply(code: int, text: str, close: bool = False) -> web.Response:
    # Bytes of a request that are not UTF-8 return unchanged in the error message.
    body = text.encode("utf-8", "surrogateescape")
    reply = web.Response(body=body, status=code, content_type="application/json")
    if close:
        reply.force_close()
    return reply
