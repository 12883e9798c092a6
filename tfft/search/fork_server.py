"""Processes for trials that start with TensorFlow already imported, which otherwise takes seconds.

The fork server imports everything, starts no threads, and forks a process for each job. A fork of a
process with a single thread is safe. When the searcher exits, the fork server asks its running jobs
to stop and waits until they have saved. On other systems than Linux, where libraries may not
survive a fork, each job is a fresh process.

The two processes exchange lines of JSON. The searcher sends `{id, job, log, environment}` and `{id,
signal}`; the fork server answers `{id, code}`.
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

POLL_SECONDS = 0.05  # seconds between two polls of the running processes
LOST_EXIT_CODE = -int(signal.SIGKILL)  # exit code reported for jobs of a lost fork server


class Job:
    """A running job, with the methods of `subprocess.Popen` that the search needs.

    Args:
        send: function that sends a signal to the job.
    """

    def __init__(self, send: Any):
        self._send, self._finished = send, threading.Event()
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, or None while the job runs."""
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code and return it.

        Raises:
            subprocess.TimeoutExpired: the job still runs after `timeout` seconds.
        """
        if not self._finished.wait(timeout) or self._code is None:
            raise subprocess.TimeoutExpired("trial", timeout or 0.0)
        return self._code

    def terminate(self) -> None:
        """Ask the job to stop."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the job."""
        self._send(signal.SIGKILL)

    def set_exit_code(self, code: int) -> None:
        """Record that the job ended with exit code `code`."""
        self._code = code
        self._finished.set()


class ForkServer:
    """Client of the fork server. Starts the server with the first job, and again if it is lost."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._jobs: dict[int, Job] = {}
        self._count = 0

    def start(
        self, job: Mapping[str, Any], log: Path, environment: Mapping[str, str]
    ) -> "Job | subprocess.Popen[bytes]":
        """Start a job whose output is appended to `log`."""
        if sys.platform != "linux":
            with open(log, "ab") as file:
                return subprocess.Popen(
                    trial_worker.command_line(job),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    env={**os.environ, **environment},
                )
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start_server()
            self._count += 1
            job_id = self._count
            handle = self._jobs[job_id] = Job(
                lambda signal_number: self._send_signal(job_id, signal_number)
            )
        self._send(
            {"id": job_id, "job": dict(job), "log": str(log), "environment": dict(environment)}
        )
        return handle

    def close(self) -> None:
        """Stop the fork server; running jobs are asked to stop and save."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.wait()

    def _start_server(self) -> None:
        # Forking is safe with one thread only, and BLAS starts its own threads on import.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tfft.search.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        threading.Thread(target=self._read_exit_codes, args=(self._process,), daemon=True).start()

    def _read_exit_codes(self, process: "subprocess.Popen[str]") -> None:
        for line in process.stdout or ():
            message = json.loads(line)
            self._jobs.pop(message["id"]).set_exit_code(message["code"])
        process.wait()
        with self._lock:
            job_ids = list(self._jobs) if self._process in (None, process) else []
            lost_jobs = [self._jobs.pop(job_id) for job_id in job_ids]
        for job in lost_jobs:
            job.set_exit_code(LOST_EXIT_CODE)

    def _send_signal(self, job_id: int, signal_number: int) -> None:
        self._send({"id": job_id, "signal": int(signal_number)})

    def _send(self, message: Mapping[str, Any]) -> None:
        # If the server is gone, `_read_exit_codes` reports its jobs as lost.
        with self._lock, contextlib.suppress(OSError, ValueError):
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.write(json.dumps(message) + "\n")
                self._process.stdin.flush()


def main() -> int:
    """Run the fork server: fork for each request, report exit codes, stop when the input ends."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Ctrl-C reaches every process of a terminal; only the searcher acts on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Libraries print to standard output on import, which would corrupt the protocol.
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _import()
    running: dict[int, int] = {}  # process id -> job id
    buffer = b""
    while True:
        ready, _, _ = select.select([0], [], [], POLL_SECONDS)
        if ready:
            data = os.read(0, 1 << 16)
            if not data:
                break
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                _handle_request(json.loads(line), running)
        _report_exits(running, output)
    for process in running:
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGTERM)
    # If the server exited now, PR_SET_PDEATHSIG would signal the jobs a second time, and a second
    # signal stops them before they have saved.
    for process in running:
        os.waitpid(process, 0)
    return 0


def _import() -> None:
    """Import what trials import: the pipeline, and what it imports when it needs it."""
    import matplotlib.backends.backend_svg
    import matplotlib.figure  # noqa: F401
    from transformers import AutoTokenizer  # noqa: F401

    import tfft.train  # noqa: F401


def _handle_request(message: Mapping[str, Any], running: dict[int, int]) -> None:
    if "signal" in message:
        for pid, job_id in running.items():
            if job_id == message["id"]:
                with contextlib.suppress(OSError):
                    os.kill(pid, message["signal"])
        return
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _run_job(message, parent)
    running[pid] = message["id"]


def _run_job(message: Mapping[str, Any], parent_pid: int) -> None:
    """Run the job in the forked process and exit."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        log = os.open(message["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.environ.update(message["environment"])
        # The limit was for the server; processes that the job starts use all cores.
        for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
            os.environ.pop(name, None)
        code = trial_worker.run_job({**message["job"], "parent": parent_pid})
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _report_exits(running: dict[int, int], output: IO[str]) -> None:
    for pid in list(running):
        ended_pid, status = os.waitpid(pid, os.WNOHANG)
        if ended_pid:
            code = os.waitstatus_to_exitcode(status)
            output.write(json.dumps({"id": running.pop(pid), "code": code}) + "\n")
            output.flush()


if __name__ == "__main__":
    sys.exit(main())
