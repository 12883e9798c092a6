"""Processes for trials that begin with TensorFlow imported, which takes seconds otherwise.

One process imports everything, starts nothing and forks a child for each job; with a single thread
a fork is safe. When the searcher ends it asks its children to stop, and ends when they have saved.
Elsewhere than on Linux, where libraries may not be forked, each job is a process from scratch.

The two talk in lines of JSON: `{id, job, log, environment}` and `{id, signal}` to the nursery,
`{id, code}` from it.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from tfft.search import trial_worker

LOOK = 0.05  # seconds between two looks at the children
LOST = -int(signal.SIGKILL)  # what is told of a job whose nursery is gone


class Job:
    """A running job, with the part of `subprocess.Popen` that is needed.

    Args:
        send: hands a signal to it.
    """

    def __init__(self, send: Any):
        self._send, self._ended = send, threading.Event()
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code.

        Raises:
            subprocess.TimeoutExpired: it runs on.
        """
        if not self._ended.wait(timeout) or self._code is None:
            raise subprocess.TimeoutExpired("trial", timeout or 0.0)
        return self._code

    def terminate(self) -> None:
        """Ask it to stop."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self._send(signal.SIGKILL)

    def ended(self, code: int) -> None:
        """It ended."""
        self._code = code
        self._ended.set()


class ForkServer:
    """The searcher's side; it is started with the first job, and again if it is lost."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._jobs: dict[int, Job] = {}
        self._count = 0

    def start(
        self, job: Mapping[str, Any], log: Path, environment: Mapping[str, str]
    ) -> "Job | subprocess.Popen[bytes]":
        """Begin a job, what it says appended to `log`."""
        if sys.platform != "linux":
            with open(log, "ab") as file:
                return subprocess.Popen(
                    trial_worker.command(job),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    env={**os.environ, **environment},
                )
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._begin()
            self._count += 1
            number = self._count
            made = self._jobs[number] = Job(lambda name: self._signal(number, name))
        self._tell(
            {"id": number, "job": dict(job), "log": str(log), "environment": dict(environment)}
        )
        return made

    def close(self) -> None:
        """End it; children that run are asked to stop."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.wait()

    def _begin(self) -> None:
        # One thread: BLAS would start its own as it is imported.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tfft.search.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()

    def _listen(self, process: "subprocess.Popen[str]") -> None:
        for line in process.stdout or ():
            said = json.loads(line)
            self._jobs.pop(said["id"]).ended(said["code"])
        process.wait()
        with self._lock:
            left = list(self._jobs) if self._process in (None, process) else []
            jobs = [self._jobs.pop(number) for number in left]
        for job in jobs:
            job.ended(LOST)

    def _signal(self, number: int, name: int) -> None:
        self._tell({"id": number, "signal": int(name)})

    def _tell(self, message: Mapping[str, Any]) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):  # it is gone: `_listen` tells
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.write(json.dumps(message) + "\n")
                self._process.stdin.flush()


def main() -> int:
    """The nursery: fork a child for each line, tell of each that ended, end with the input."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Ctrl-C goes to all processes of a terminal: the searcher decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    told = os.fdopen(os.dup(1), "w")  # what libraries print as they are imported goes elsewhere
    os.dup2(2, 1)
    _import()
    running: dict[int, int] = {}  # process -> job
    buffer = b""
    while True:
        ready, _, _ = select.select([0], [], [], LOOK)
        if ready:
            data = os.read(0, 1 << 16)
            if not data:
                break
            *whole, buffer = (buffer + data).split(b"\n")
            for line in whole:
                _obey(json.loads(line), running)
        _tell_ended(running, told)
    for process in running:
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGTERM)
    for process in running:  # to end now would ask them again, which ends them before they saved
        os.waitpid(process, 0)
    return 0


def _import() -> None:
    import transformers  # noqa: F401

    import tfft.train  # noqa: F401


def _obey(message: Mapping[str, Any], running: dict[int, int]) -> None:
    if "signal" in message:
        for process, number in running.items():
            if number == message["id"]:
                with contextlib.suppress(OSError):
                    os.kill(process, message["signal"])
        return
    parent = os.getpid()
    process = os.fork()
    if process == 0:
        _become(message, parent)
    running[process] = message["id"]


def _become(message: Mapping[str, Any], parent: int) -> None:
    """In the child: do the job and exit."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        log = os.open(message["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.environ.update(message["environment"])
        for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):  # for what it starts itself
            os.environ.pop(name, None)
        code = trial_worker.do({**message["job"], "parent": parent})
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _tell_ended(running: dict[int, int], told: IO[str]) -> None:
    for process in list(running):
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            told.write(json.dumps({"id": running.pop(process), "code": code}) + "\n")
            told.flush()


if __name__ == "__main__":
    sys.exit(main())
