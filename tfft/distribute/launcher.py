"""Launcher of several workers on this machine: start, stop and restart them together.

It is for tests of a cluster setup, and for machines on which several processes are faster than one.
Workers that a cluster manager starts need TF_CONFIG only, and do not use this module.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import IO, Any

from tfft.utils import console

GRACE_SECONDS = 20.0  # between SIGTERM and SIGKILL
INTERRUPTED = 3  # exit code of an interrupted run, whose state is saved


def launch(command: Sequence[str], workers: int, restarts: int) -> int:
    """Run a tfft command in several workers.

    When a worker fails, the others are stopped. Then all workers are restarted, at most `restarts`
    times, and resume from the last checkpoint. A user error (exit code 2) and a signal to the
    launcher are final.

    Args:
        command: arguments of `tfft`, the same for every worker.
        workers: number of workers.
        restarts: maximum number of restarts.

    Returns:
        0, or the exit code of the worker that failed; `INTERRUPTED` if a signal ended it.
    """
    for restart in range(restarts + 1):
        group = _WorkerGroup(command, workers)
        code, interrupted = group.run()
        # 2 is a user error, which a restart would only repeat.
        if code == 0 or code == 2 or interrupted or restart == restarts:
            return code
        console.log(f"launch: restarting all {workers} workers ({restart + 1} of {restarts} times)")
    return code


class _WorkerGroup:
    """The worker processes between a start and the end of all."""

    def __init__(self, command: Sequence[str], workers: int):
        self._interrupted = False
        addresses = [f"127.0.0.1:{port}" for port in find_free_ports(workers)]
        self._workers = [
            _start_worker(
                command, {"cluster": {"worker": addresses}, "task": _task(index)}, workers
            )
            for index in range(workers)
        ]
        self._readers = [
            threading.Thread(target=_forward_output, args=(index, worker.stderr), daemon=True)
            for index, worker in enumerate(self._workers)
        ]
        for reader in self._readers:
            reader.start()

    def run(self) -> tuple[int, bool]:
        """Wait for all workers.

        Returns:
            The exit code, and whether a signal to the launcher ended them.
        """
        handlers = {s: signal.signal(s, self._interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            code = self._wait()
        finally:
            self._stop()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for reader in self._readers:
                reader.join(timeout=5)
        return code, self._interrupted

    def _wait(self) -> int:
        while True:
            codes = [worker.poll() for worker in self._workers]
            failed = [(i, c) for i, c in enumerate(codes) if c not in (None, 0)]
            if failed:
                index, code = self._root_failure(failed)
                if not self._interrupted:
                    console.log(
                        f"launch: worker {index} {_describe_exit(code)}; stopping the others"
                    )
                # A killed worker has no exit code of tfft; its run resumes like an interrupted one.
                return code if code > 0 else INTERRUPTED
            if all(code == 0 for code in codes):
                return 0
            time.sleep(0.2)

    def _root_failure(self, failed: list[tuple[int, int]]) -> tuple[int, int]:
        """Return index and exit code of the worker that failed first, as far as known."""
        # Exit codes of killed workers are negative. The others fail because they lost that one.
        return min(failed, key=lambda pair: pair[1])

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """Send SIGTERM to all workers, on which they save their state."""
        # Workers that end from now on were asked to, so their failure is not logged.
        self._interrupted = True
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.send_signal(signal.SIGTERM)

    def _stop(self) -> None:
        """Terminate the running workers, and kill those that do not end in time."""
        # One deadline for all, since they save their state at the same time.
        deadline = time.monotonic() + GRACE_SECONDS
        for worker in self._workers:
            # After an interruption they have the signal already; a second one is not needed.
            if worker.poll() is None and not self._interrupted:
                worker.terminate()
        for worker in self._workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(max(0.1, deadline - time.monotonic()))
            if worker.poll() is None:
                worker.kill()
                worker.wait()


def _start_worker(
    command: Sequence[str], tf_config: dict[str, Any], workers: int
) -> subprocess.Popen[str]:
    environment = {**os.environ, "TF_CONFIG": json.dumps(tf_config)}
    # Each worker gets its share of the cores; by default each would use all of them.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # `setdefault`: a value that the user has set is kept.
    environment.setdefault("TF_NUM_INTRAOP_THREADS", str(max(1, (cores or 1) // workers)))
    # In a new session, so that Ctrl-C in the terminal reaches the launcher only. It forwards one
    # signal to each worker.
    return subprocess.Popen(
        [sys.executable, "-m", "tfft.cli", *command],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # Output that is not UTF-8 must not end the thread that reads it.
        errors="replace",
        start_new_session=True,
    )


def _task(index: int) -> dict[str, Any]:
    return {"type": "worker", "index": index}


def _forward_output(index: int, stream: IO[str]) -> None:
    """Copy a worker's output to standard error; lines of all but the first get a prefix."""
    for line in stream:
        sys.stderr.write(line if index == 0 else f"[worker {index}] {line}")
        sys.stderr.flush()


def _describe_exit(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"failed with exit code {code}"


def find_free_ports(count: int) -> list[int]:
    """Return free ports of the loopback address."""
    # All sockets are open at once, so that the ports differ.
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
