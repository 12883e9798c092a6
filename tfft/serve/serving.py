"""Starts both interfaces over one model, until a signal."""

import asyncio
import contextlib
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tfft.serve import grpc_service, warmup
from tfft.serve.batching import Batcher
from tfft.serve.http import Limits, Rest
from tfft.serve.versions import Versions
from tfft.utils import console
from tfft.utils.errors import UserError


@dataclass(frozen=True)
class Options:
    """How to serve.

    Attributes:
        name: of the model, in the requests.
        base: the folder of the numbered versions, or one of them.
        host: the address; others than loopback's are the user's decision.
        rest_port, grpc_port: 0 for any that is free.
        batch: rows of a batch at most.
        threads: batches at once.
        body: bytes of a request at most.
        seconds: for a request to arrive and to be answered.
    """

    name: str
    base: Path
    host: str = "127.0.0.1"
    rest_port: int = 8501
    grpc_port: int = 8500
    batch: int = 32
    threads: int = 1
    body: int = 64 << 20
    seconds: float = 60.0


def serve(options: Options, ready: Callable[[int, int], None] = lambda rest, grpc: None) -> None:
    """Serve until SIGINT or SIGTERM; what has come by then is answered.

    Args:
        ready: called with the ports once both listen.

    Raises:
        UserError: there is nothing to serve, or an address is taken.
    """
    versions = Versions(options.name, options.base, warmup.replay)
    batcher = Batcher(options.batch, threads=options.threads)
    try:
        asyncio.run(_serve(options, versions, batcher, ready))
    finally:
        versions.close()
        batcher.close()
    console.log("stopped")


async def _serve(
    options: Options, versions: Versions, batcher: Batcher, ready: Callable[[int, int], None]
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    rest = Rest(versions, batcher, Limits(options.body, options.seconds))
    grpc_server = None
    try:
        rest_port = await _listening(rest, options)
        grpc_server, grpc_port = grpc_service.start(
            versions, batcher, f"{options.host}:{options.grpc_port}", options.body, options.seconds
        )
        if not grpc_port:
            raise UserError(f"--port: cannot listen on {options.host}:{options.grpc_port}")
        model = f"http://{options.host}:{rest_port}/v1/models/{options.name}"
        console.log("a development server; TF Serving is what answers in production")
        console.log(f"REST {model}:predict   gRPC {options.host}:{grpc_port}   Ctrl-C ends it")
        ready(rest_port, grpc_port)
        await stop.wait()
    finally:
        await rest.stop()
        if grpc_server is not None:
            grpc_server.stop(grace=5.0).wait()


async def _listening(rest: Rest, options: Options) -> int:
    with contextlib.suppress(OSError):
        return await rest.start(options.host, options.rest_port)
    raise UserError(
        f"--rest_api_port: cannot listen on {options.host}:{options.rest_port}; 0 takes any that "
        "is free"
    )
