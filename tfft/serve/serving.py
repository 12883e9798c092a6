"""Run the REST and gRPC servers over one model until a signal."""

import asyncio
import contextlib
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tfft.serve import grpc_service, warmup
from tfft.serve.batching import Batcher
from tfft.serve.http import Limits, Rest
from tfft.serve.versions import VersionManager
from tfft.utils import console
from tfft.utils.errors import UserError


@dataclass(frozen=True)
class Options:
    """Options of the server.

    Attributes:
        model_name: name of the model in requests.
        base_path: the folder of the numbered versions, or one version.
        host: address to listen on. There is no authentication, so the default is loopback.
        rest_port: port of the REST interface; 0 for a free one.
        grpc_port: port of the gRPC interface; 0 for a free one.
        max_batch_size: largest number of rows of a batch.
        num_batch_threads: number of batches that are computed at once.
        max_body_bytes: largest size of a request, in bytes.
        timeout: time for a request to arrive, and the same time to answer it, in seconds.
    """

    model_name: str
    base_path: Path
    host: str = "127.0.0.1"
    rest_port: int = 8501
    grpc_port: int = 8500
    max_batch_size: int = 32
    num_batch_threads: int = 1
    max_body_bytes: int = 64 << 20
    timeout: float = 60.0


def serve(options: Options, on_ready: Callable[[int, int], None] = lambda rest, grpc: None) -> None:
    """Serve until SIGINT or SIGTERM, and answer the requests that arrived before.

    Args:
        options: what to serve, and where.
        on_ready: called with the REST and the gRPC port once both listen.

    Raises:
        UserError: there is no version to serve, or an address is in use.
    """
    versions = VersionManager(options.model_name, options.base_path, warmup.replay)
    batcher = Batcher(options.max_batch_size, num_threads=options.num_batch_threads)
    try:
        asyncio.run(_serve(options, versions, batcher, on_ready))
    finally:
        # Both servers have stopped by now, so no request arrives any more.
        versions.close()
        batcher.close()
    console.log("stopped")


async def _serve(
    options: Options,
    versions: VersionManager,
    batcher: Batcher,
    on_ready: Callable[[int, int], None],
) -> None:
    stopped = asyncio.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        # asyncio's handlers: they run in the event loop, not in the middle of any bytecode.
        asyncio.get_running_loop().add_signal_handler(signal_number, stopped.set)
    rest = Rest(versions, batcher, Limits(options.max_body_bytes, options.timeout))
    grpc_server = None
    try:
        rest_port = await _start_rest(rest, options)
        grpc_server, grpc_port = grpc_service.start(
            versions,
            batcher,
            f"{options.host}:{options.grpc_port}",
            options.max_body_bytes,
            options.timeout,
        )
        if not grpc_port:
            raise UserError(f"--port: cannot listen on {options.host}:{options.grpc_port}")
        model = f"http://{options.host}:{rest_port}/v1/models/{options.model_name}"
        console.log("a development server; TF Serving is what answers in production")
        console.log(f"REST {model}:predict   gRPC {options.host}:{grpc_port}   Ctrl-C ends it")
        on_ready(rest_port, grpc_port)
        await stopped.wait()
    finally:
        await rest.stop()
        if grpc_server is not None:
            grpc_server.stop(grace=5.0).wait()  # seconds for running calls


async def _start_rest(rest: Rest, options: Options) -> int:
    with contextlib.suppress(OSError):
        return await rest.start(options.host, options.rest_port)
    raise UserError(
        f"--rest_api_port: cannot listen on {options.host}:{options.rest_port}; use 0 for a free "
        "port"
    )
