"""Run `verify.py` on each export in a clean process.

A fork server imports TensorFlow once, which takes seconds, and forks a process for each export. The
first export starts it. It exits after `verify.IDLE_SECONDS` without a request, or with the process
that started it. Outside Linux every export starts a new process, since forking is not safe there.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

SCRIPT = Path(__file__).parent / "verify.py"


class Verifier:
    """A fork server that verifies exports one after another.

    Args:
        script: path of the script that it runs.
    """

    def __init__(self, script: Path = SCRIPT):
        self._script = script
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner_id = 0  # a fork of this process must start its own server

    def run(self, folder: Path) -> str | None:
        """Verify the export in a folder.

        Returns:
            None if the verification succeeded, otherwise the last line of its error output.
        """
        if sys.platform != "linux":
            return self._run_once(folder)
        with self._lock:
            try:
                code = self._request(folder)
                if code is None:  # it ended because it was idle: start another
                    self._stop()
                    code = self._request(folder)
            except BaseException:  # interrupted: a late answer would be read by the next request
                self._stop()
                raise
            if code is None:
                return _last_line(self._stop())
        if code == "0":
            return None
        errors = folder / "errors.txt"
        return _last_line(errors.read_text(errors="replace") if errors.is_file() else "")

    def _request(self, folder: Path) -> str | None:
        """Send a folder to the fork server; return the exit code, or None if the server ended."""
        process = self._process
        if process is None or process.poll() is not None or self._owner_id != os.getpid():
            process = self._start()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(os.path.abspath(folder)) + "\n")
            process.stdin.flush()
        return process.stdout.readline().strip() or None

    def _start(self) -> "subprocess.Popen[str]":
        # BLAS starts its threads at import, and a process with threads must not fork.
        threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._owner_id = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(self._script), "--parent", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**_environment(), **threads},
            start_new_session=True,  # killed as one group; Ctrl-C reaches only this process
        )
        return self._process

    def _stop(self) -> str:
        """Kill the fork server and its forks, and return its error output."""
        process, self._process = self._process, None
        if process is None:
            return ""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()[1]

    def _run_once(self, folder: Path) -> str | None:
        command = [sys.executable, "-I", str(self._script), str(folder)]
        result = subprocess.run(
            command, capture_output=True, text=True, env=_environment(), check=False
        )
        return _last_line(result.stderr) if result.returncode else None


def _environment() -> dict[str, str]:
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1]
