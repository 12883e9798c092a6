"""The console script in separate processes, which start with TensorFlow imported.

The import takes seconds; multiprocessing's fork server does it once for all commands. Each command
is still a process: it has a process id, environment, standard error and exit code, and can get
signals.
"""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

LIMIT = 240  # seconds, after which a hanging process is killed

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.preloaded"])


_started = []


def end_all():
    """Kill the processes that a failed test left running."""
    while _started:
        _started.pop().kill()


def running(process):
    """Return whether the process of an id is running; a zombie is not."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


class Command:
    """A separate process that runs `tfft ARGUMENTS`.

    Args:
        arguments: the command and its flags.
        environment: variables to add to the environment of this process.
        setup: function that the new process calls before the command.

    Attributes:
        pid: the process id.
    """

    def __init__(self, *arguments, environment=None, setup=None):
        _started.append(self)
        self._folder = TemporaryDirectory()
        self._log = Path(self._folder.name) / "stderr.txt"
        self._log.touch()
        variables = {**os.environ, **(environment or {})}
        # The server must not start threads during its imports: forking them is unsafe.
        threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        original = {name: os.environ.get(name) for name in threads}
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
            for name, value in original.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        self.pid = self._process.pid

    @property
    def stderr(self):
        """Standard output and standard error so far."""
        return self._log.read_text(errors="replace")

    def poll(self):
        """Return the exit code; None while the process is running."""
        self._process.join(0)
        return self._process.exitcode

    def wait(self, timeout=LIMIT):
        """Wait for the end and return the exit code and the output.

        Raises:
            subprocess.TimeoutExpired: it was still running after `timeout` seconds and was killed.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            raise subprocess.TimeoutExpired("tfft", timeout, stderr=self.stderr)
        return self._process.exitcode, self.stderr

    def wait_for(self, condition, timeout=LIMIT):
        """Wait until `condition()` is true; fail if the process ends first, or after `timeout`."""
        deadline = time.monotonic() + timeout
        while not condition():
            ended = self.poll() is not None
            in_time = time.monotonic() < deadline
            assert not ended and in_time, f"ended or hangs: {self.stderr[-2000:]}"
            time.sleep(0.05)

    def send_signal(self, number):
        """Send a signal if the process is still running."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        """Kill the process."""
        self._process.kill()
        self._process.join()


def _run(arguments, variables, folder, log, setup):
    """Run a command in the new process, with its output redirected to a file."""
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
