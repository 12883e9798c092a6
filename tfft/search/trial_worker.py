"""One run of a search, in a process of its own (`nursery`), or `python -m tfft.search.trial_worker JOB`.

Its memory comes back when it ends, and what ends it ends nothing else. It ends, saved, when the
process that started it does. Exit codes are those of the binaries: 0 done, 2 the config cannot be
trained, 3 stopped and saved.
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

PARENT_DIED = 1  # prctl's PR_SET_PDEATHSIG


def main() -> int:
    """The job that the command line holds."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return do(json.loads(sys.argv[1]))


def do(job: Mapping[str, Any]) -> int:
    """Train, or ask for advice, as the job says; the exit code."""
    end_with(job["parent"], signal.SIGTERM)
    try:
        if job["verb"] == "advise":
            _advise(Path(job["config"]), Path(job["output"]))
        else:
            _train(Path(job["config"]), Path(job["workdir"]), job["epochs"])
    except UserError as error:
        return _said(error, 2)
    except Interrupted as error:
        return _said(error, 3)
    return 0


def _train(config: Path, workdir: Path, epochs: int | None) -> None:
    from tfft import train
    from tfft.config import load

    with _alone(workdir):
        train.run(load(config), workdir, epochs)


def _advise(config: Path, output: Path) -> None:
    from tfft.config import dump, load
    from tfft.training import advice

    write_atomic(output, dump(advice.resolve(load(config), None)))


def _said(error: Exception, code: int) -> int:
    for line in str(error).split("\n"):
        sys.stderr.write(f"tfft: {line}\n")
    return code


@contextmanager
def _alone(workdir: Path) -> Iterator[None]:
    """Wait until no other process trains there: one whose search was killed may still save."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with open_to_append(workdir.with_name(f"{workdir.name}.lock")) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def end_with(parent: int, number: int) -> None:
    """Send this process a signal when the one that started it is gone."""
    with suppress(OSError, AttributeError):  # Linux: at once
        ctypes.CDLL(None).prctl(PARENT_DIED, number)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), number)

    if sys.platform != "linux" or os.getppid() != parent:
        threading.Thread(target=watch, daemon=True).start()


def command(job: Mapping[str, Any]) -> list[str]:
    """The command line that does a job."""
    text = json.dumps({**job, "parent": os.getpid()})
    return [sys.executable, "-m", "tfft.search.trial_worker", text]


if __name__ == "__main__":
    sys.exit(main())
