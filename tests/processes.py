"""The console script in processes of their own, which begin with TensorFlow imported.

Importing it takes seconds; multiprocessing's fork server does it once for all commands. Each is
still a process: it has its own process id, environment, standard error and exit code, and can be
sent signals.
"""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

LIMIT = 240  # seconds, after which a hanging process is ended

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.preloaded"])


_started = []


def end_all():
    """End what a test that failed or was cut off left running."""
    while _started:
        _started.pop().kill()


def running(process):
    """Whether a process runs, by its id; a zombie does not."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


class Command:
    """`tfft ARGUMENTS` in a process of its own.

    Args:
        environment: variables added to this process's own.
        setup: called first, in the new process.
    """

    def __init__(self, *arguments, environment=None, setup=None):
        _started.append(self)
        self._folder = TemporaryDirectory()
        self._log = Path(self._folder.name) / "stderr.txt"
        self._log.touch()
        variables = {**os.environ, **(environment or {})}
        # One thread while libraries are imported, so that the server may fork.
        threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        before = {name: os.environ.get(name) for name in threads}
        os.environ.update(threads)
        try:
            arguments = [str(argument) for argument in arguments]
            self._process = _context.Process(
                target=_run,
                args=(arguments, variables, os.getcwd(), self._log, setup),
                daemon=True,
            )
            self._process.start()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        self.pid = self._process.pid

    @property
    def stderr(self):
        """What it wrote to standard error so far."""
        return self._log.read_text(errors="replace")

    def poll(self):
        """The exit code, None while it runs."""
        self._process.join(0)
        return self._process.exitcode

    def wait(self, timeout=LIMIT):
        """The exit code and standard error; a process that hangs is ended."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            raise subprocess.TimeoutExpired("tfft", timeout, stderr=self.stderr)
        return self._process.exitcode, self.stderr

    def wait_for(self, condition, timeout=LIMIT):
        """Wait until `condition()` holds, while the process runs."""
        until = time.monotonic() + timeout
        while not condition():
            ended = self.poll() is not None
            assert not ended and time.monotonic() < until, f"ended or hangs: {self.stderr[-2000:]}"
            time.sleep(0.05)

    def send_signal(self, number):
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        """End it."""
        self._process.kill()
        self._process.join()


def _run(arguments, variables, folder, log, setup):
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    target = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(target, stream)
    for name, stream in (("stdout", 1), ("stderr", 2)):
        setattr(sys, name, os.fdopen(stream, "w", buffering=1, closefd=False))
    sys.argv = ["tfft", *arguments]
    if setup is not None:
        setup()
    from tfft.cli import __main__ as console

    console.main()
