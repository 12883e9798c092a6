"""TF Serving's REST interface (http_rest_api_handler.cc), on aiohttp.

POST /v1/models/NAME[/versions/N|/labels/L]:predict | :classify | :regress
GET  /v1/models/NAME[/versions/N|/labels/L]             state of the versions
GET  /v1/models/NAME[/versions/N|/labels/L]/metadata    signatures
"""

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from google.protobuf import json_format

from tfft import log
from tfft.serve import examples, json_tensors
from tfft.serve.batching import Batcher
from tfft.serve.failure import Failure, invalid
from tfft.serve.loaded import Loaded, Signature
from tfft.serve.versions import Versions

_PATH = re.compile(
    r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d{1,19})|/labels/(?P<label>[^/:]+))?"
    r"(?::(?P<verb>predict|classify|regress)|(?P<metadata>/metadata))?"
)
PARSERS = 2  # bodies that are read at once


@dataclass(frozen=True)
class Limits:
    """What a client may take.

    Attributes:
        body: bytes of a request, after it was unpacked.
        seconds: for a request to arrive, and as many again to be answered.
    """

    body: int
    seconds: float

    @property
    def idle(self) -> float:
        """Seconds for which a connection without a whole request is held."""
        return min(30.0, self.seconds)


class _Slow(Exception):
    """A request that does not arrive."""


class Rest:
    """The REST interface of one model.

    Args:
        versions: that are served.
        batcher: that answers.
    """

    def __init__(self, versions: Versions, batcher: Batcher, limits: Limits):
        self._versions, self._batcher, self._limits = versions, batcher, limits
        self._parsers = ThreadPoolExecutor(PARSERS, thread_name_prefix="json")
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; the port that it is, also where 0 was asked for."""
        app = web.Application(client_max_size=self._limits.body)
        app.router.add_route("*", "/{path:.*}", self._handle)
        # From the start of a connection on: clients that send nothing, or slowly, are let go.
        self._runner = web.AppRunner(
            app, access_log=None, keepalive_timeout=self._limits.idle, lingering_time=1.0
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        found: int = self._runner.addresses[0][1]
        return found

    async def stop(self) -> None:
        """Answer what has come, close."""
        if self._runner is not None:
            await self._runner.cleanup()
        self._parsers.shutdown()

    async def _handle(self, request: web.Request) -> web.Response:
        try:
            return _reply(200, await self._answer(request))
        except Failure as failure:
            return _reply(failure.http, {"error": failure.message})
        except _Slow as error:
            return _reply(408, {"error": str(error)}, close=True)
        except TimeoutError:
            return _reply(504, {"error": f"no answer within {self._limits.seconds:g} s"})
        except web.HTTPRequestEntityTooLarge:
            said = f"the request is larger than {self._limits.body:,} bytes"
            return _reply(413, {"error": said}, close=True)
        except (web.RequestPayloadError, web.HTTPException) as error:
            return _reply(400, {"error": f"Malformed request: {error}"}, close=True)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:  # ours: the server stays up
            log.say(f"{request.method} {request.path}: {type(error).__name__}: {error}")
            return _reply(500, {"error": "internal error"})

    async def _answer(self, request: web.Request) -> Any:
        if not request.path.startswith("/v1/"):
            raise Failure("NOT_FOUND", "Not Found")
        match = _PATH.fullmatch(request.path)
        verb = match["verb"] if match is not None else None
        if match is None or request.method != ("POST" if verb else "GET"):
            raise invalid(f"Malformed request: {request.method} {request.path}")
        if match["name"] != self._versions.name:
            if verb or match["metadata"]:
                wanted = f"Specific({match['name']}, {match['version']})"
                latest = f"Latest({match['name']})"
                kind = wanted if match["version"] else latest
                raise Failure("NOT_FOUND", f"Servable not found for request: {kind}")
            raise Failure("NOT_FOUND", f"Could not find any versions of model {match['name']}")
        version = int(match["version"]) if match["version"] is not None else None
        if not verb and not match["metadata"]:
            return self._status(version, match["label"])
        loaded = self._versions.find(version, match["label"])
        if not verb:
            return metadata(self._versions.name, loaded)
        return await self._asked(verb, loaded, await self._body(request))

    async def _body(self, request: web.Request) -> bytes:
        try:
            async with asyncio.timeout(self._limits.seconds):
                return await request.read()
        except TimeoutError:
            said = f"the request did not arrive within {self._limits.seconds:g} s"
            raise _Slow(said) from None

    async def _asked(self, verb: str, loaded: Loaded, body: bytes) -> Any:
        prepare = _predict if verb == "predict" else _examples
        loop = asyncio.get_running_loop()
        signature, inputs, reply = await loop.run_in_executor(
            self._parsers, prepare, verb, loaded, body
        )
        async with asyncio.timeout(self._limits.seconds):
            found = await asyncio.wrap_future(self._batcher.submit(signature, inputs))
        return await loop.run_in_executor(self._parsers, reply, found)

    def _status(self, version: int | None, label: str | None) -> Any:
        states = self._versions.known()
        if label is not None:
            version = self._versions.labels().get(label)
            if version is None:
                raise invalid(f"Unrecognized servable version label: {label}")
        if version is not None:
            states = {n: s for n, s in states.items() if n == version}
        if not states:
            raise Failure(
                "NOT_FOUND",
                f"Could not find version {version} of model {self._versions.name}",
            )
        ok = {"error_code": "OK", "error_message": ""}
        return {
            "model_version_status": [
                {"version": str(number), "state": state, "status": ok}
                for number, state in states.items()
            ]
        }


Prepared = tuple[Signature, Mapping[str, Any], Callable[[Mapping[str, Any]], Any]]


def _predict(verb: str, loaded: Loaded, body: bytes) -> Prepared:
    request = json_tensors.parse(body)
    signature = loaded.signature(json_tensors.signature_name(request))
    inputs, form = json_tensors.inputs(request, signature.inputs)
    return signature, inputs, lambda found: json_tensors.outputs(found, form)


def _examples(verb: str, loaded: Loaded, body: bytes) -> Prepared:
    request = json_tensors.parse(body)
    signature = loaded.signature(json_tensors.signature_name(request))
    examples.check(signature, verb)
    read = examples.classes if verb == "classify" else examples.values
    return signature, examples.inputs(request), lambda found: {"results": read(found)}


def metadata(name: str, loaded: Loaded) -> dict[str, Any]:
    """The signatures, as TF Serving tells of them."""
    told = {
        key: json_format.MessageToDict(
            signature,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )
        for key, signature in loaded.metadata.items()
    }
    return {
        "model_spec": {"name": name, "signature_name": "", "version": str(loaded.version)},
        "metadata": {"signature_def": {"signature_def": told}},
    }


def _reply(code: int, value: Any, close: bool = False) -> web.Response:
    text = json.dumps(value, ensure_ascii=False, indent=4 if code == 200 else None)
    reply = web.Response(text=text, status=code, content_type="application/json")
    if close:
        reply.force_close()
    return reply
