"""Several workers on this machine: started together, ended together, started again.

For trying a cluster out, and for a machine on which several processes are faster than one. Where a
cluster manager starts the workers, TF_CONFIG is all they need, and this file is not used.
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

GRACE = 20.0  # seconds between asking a worker to end and ending it
INTERRUPTED = 3  # the exit code of a run that saved its state


def launch(command: Sequence[str], workers: int, restarts: int) -> int:
    """Run `command` as so many workers; the exit code of the first that failed, or 0.

    When one ends other than well, the rest is ended; as long as there are `restarts` left, all are
    started again and go on at the last checkpoint. Mistakes of the user's (exit code 2) and an
    interruption that was asked for are final.
    """
    for again in range(restarts + 1):
        group = _Group(command, workers)
        code, asked = group.run()
        if code == 0 or code == 2 or asked or again == restarts:
            return code
        console.log(
            f"launch: starting all {workers} workers again ({again + 1} of {restarts} times)"
        )
    return code


class _Group:
    """The workers of one start."""

    def __init__(self, command: Sequence[str], workers: int):
        self._asked = False
        addresses = [f"127.0.0.1:{port}" for port in _free_ports(workers)]
        self._workers = [
            _start(command, {"cluster": {"worker": addresses}, "task": _task(index)}, workers)
            for index in range(workers)
        ]
        self._readers = [
            threading.Thread(target=_pass_on, args=(index, worker.stderr), daemon=True)
            for index, worker in enumerate(self._workers)
        ]
        for reader in self._readers:
            reader.start()

    def run(self) -> tuple[int, bool]:
        """Wait for all; the exit code, and whether a signal asked for the end."""
        before = {s: signal.signal(s, self._hand_on) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            code = self._wait()
        finally:
            self._end()
            for number, handler in before.items():
                signal.signal(number, handler)
            for reader in self._readers:
                reader.join(timeout=5)
        return code, self._asked

    def _wait(self) -> int:
        while True:
            codes = [worker.poll() for worker in self._workers]
            failed = [(i, c) for i, c in enumerate(codes) if c not in (None, 0)]
            if failed:
                index, code = self._culprit(failed)
                if not self._asked:
                    console.log(f"launch: worker {index} {_ending(code)}; ending the others")
                return code if code > 0 else INTERRUPTED
            if all(code == 0 for code in codes):
                return 0
            time.sleep(0.2)

    def _culprit(self, failed: list[tuple[int, int]]) -> tuple[int, int]:
        """The first to fail; where a signal killed one, that one."""
        return min(failed, key=lambda pair: pair[1])

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.send_signal(signal.SIGTERM)

    def _end(self) -> None:
        """Ask each worker that is left to end, then end it."""
        until = time.monotonic() + GRACE
        for worker in self._workers:
            if worker.poll() is None and not self._asked:
                worker.terminate()
        for worker in self._workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(max(0.1, until - time.monotonic()))
            if worker.poll() is None:
                worker.kill()
                worker.wait()


def _start(command: Sequence[str], cluster: dict[str, Any], workers: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "TF_CONFIG": json.dumps(cluster)}
    # Each takes its share of the cores: left alone, every worker would take them all.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    environment.setdefault("TF_NUM_INTRAOP_THREADS", str(max(1, (cores or 1) // workers)))
    # A session of its own: the terminal's Ctrl-C reaches the launcher, which hands it on once.
    return subprocess.Popen(
        [sys.executable, "-m", "tfft.cli", *command],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def _task(index: int) -> dict[str, Any]:
    return {"type": "worker", "index": index}


def _pass_on(index: int, stream: IO[str]) -> None:
    """What a worker says, with its number in front but for the first worker's."""
    for line in stream:
        sys.stderr.write(line if index == 0 else f"[worker {index}] {line}")
        sys.stderr.flush()


def _ending(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
