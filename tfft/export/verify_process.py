"""Run `verify.py` on exports, each in a process that has loaded nothing else.

A server process imports TensorFlow, which takes seconds, and forks a child for each export. The
first export starts it; it exits after `probe.IDLE` seconds without a request, or with the process
that started it. Other platforms than Linux start a new process for each export, since forking is
not safe there.
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
    """A process that verifies exports one after another.

    Args:
        script: what it runs.
    """

    def __init__(self, script: Path = SCRIPT):
        self._script = script
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0  # the process that started it: a fork of that one starts its own

    def run(self, folder: Path) -> str | None:
        """Verify the export in a folder.

        Returns None if it ran to its end, otherwise the last line that it wrote.
        """
        if sys.platform != "linux":
            return self._from_scratch(folder)
        with self._lock:
            try:
                code = self._ask(folder)
                if code is None:  # it ended meanwhile, being idle; another one will answer
                    self._end()
                    code = self._ask(folder)
            except BaseException:  # an interrupt: what it answers now is nobody's
                self._end()
                raise
            if code is None:
                return _last_line(self._end())
        if code == "0":
            return None
        errors = folder / "errors.txt"
        return _last_line(errors.read_text(errors="replace") if errors.is_file() else "")

    def _ask(self, folder: Path) -> str | None:
        """The exit code; None if the process is gone."""
        process = self._process
        if process is None or process.poll() is not None or self._owner != os.getpid():
            process = self._start()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(os.path.abspath(folder)) + "\n")
            process.stdin.flush()
        return process.stdout.readline().strip() or None

    def _start(self) -> "subprocess.Popen[str]":
        # One thread: BLAS would start its own as it is imported.
        threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(self._script), "--parent", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**_environment(), **threads},
            start_new_session=True,  # a group, which is ended as one; Ctrl-C is for this process
        )
        return self._process

    def _end(self) -> str:
        """End the process and what it forked; what it wrote to standard error."""
        process, self._process = self._process, None
        if process is None:
            return ""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()[1]

    def _from_scratch(self, folder: Path) -> str | None:
        command = [sys.executable, "-I", str(self._script), str(folder)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=_environment(), check=False
        )
        return _last_line(done.stderr) if done.returncode else None


def _environment() -> dict[str, str]:
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1]
