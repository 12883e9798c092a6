"""One run of a search in a separate process.

Forked by `fork_server`, or started as `python -m tfft.search.trial_worker JOB`. A process returns
all its memory when it ends, and a crash ends only its own run. It saves and exits when the process
that started it exits. Exit codes are those of the commands: 0 done, 2 the config cannot be trained,
3 stopped and saved.
"""

import ctypes
import fcntl
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tfft.utils.errors import Interrupted, UserError
from tfft.utils.files import open_to_append, write_atomic

PR_SET_PDEATHSIG = 1  # linux/prctl.h: the signal to receive when the parent ends


def main() -> int:
    """Run the job on the command line and return its exit code."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return run_job(json.loads(sys.argv[1]))


def run_job(job: Mapping[str, Any]) -> int:
    """Train, or resolve `method: auto`, as the job says, and return the exit code."""
    exit_with_parent(job["parent"], signal.SIGTERM)
    try:
        if job["verb"] == "advise":
            _advise(Path(job["config"]), Path(job["output"]))
        else:
            _train(Path(job["config"]), Path(job["workdir"]), job["epochs"])
    except UserError as error:
        return _report_error(error, 2)
    except Interrupted as error:
        return _report_error(error, 3)
    return 0


def _train(config: Path, workdir: Path, epochs: int | None) -> None:
    from tfft import train
    from tfft.config import load

    with _exclusive(workdir):
        train.run(load(config), workdir, epochs)


def _advise(config: Path, output: Path) -> None:
    from tfft.config import dump, load
    from tfft.training import advice

    write_atomic(output, dump(advice.resolve(load(config), None)))


def _report_error(error: Exception, code: int) -> int:
    for line in str(error).split("\n"):
        sys.stderr.write(f"tfft: {line}\n")
    return code


@contextmanager
def _exclusive(workdir: Path) -> Iterator[None]:
    """Wait until no other process trains in `workdir`.

    A run whose search was killed may still be saving.
    """
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with open_to_append(workdir.with_name(f"{workdir.name}.lock")) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def exit_with_parent(parent: int, signal_number: int) -> None:
    """Send signal `signal_number` to this process when its parent exits.

    Linux does so itself (PR_SET_PDEATHSIG). Elsewhere, or if the parent has exited already, a
    thread watches the parent's process id.
    """
    with suppress(OSError, AttributeError):  # there is no prctl outside Linux
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal_number)

    # The parent may have exited before prctl took effect.
    if sys.platform != "linux" or os.getppid() != parent:
        threading.Thread(target=watch, daemon=True).start()


def command_line(job: Mapping[str, Any]) -> list[str]:
    """Return the command line that runs a job."""
    payload = json.dumps({**job, "parent": os.getpid()})
    return [sys.executable, "-m", "tfft.search.trial_worker", payload]


if __name__ == "__main__":
    sys.exit(main())
