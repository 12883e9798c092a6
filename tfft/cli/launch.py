"""Start several workers on this machine.

The command and its flags are passed to every worker. When a worker fails, the others are
stopped; with --restarts all are started again and resume from the last checkpoint.

Example:
    tfft launch --workers=2 --restarts=3 train --config=reviews.yaml
"""

import sys

from absl import flags

from tfft.cli import common
from tfft.utils.errors import UserError

flags.DEFINE_integer("workers", 2, "number of workers", lower_bound=1, upper_bound=64)
flags.DEFINE_integer("restarts", 0, "times that all workers are restarted after one is lost", 0)

_worker_command: list[str] = []


def run() -> None:
    """Start and watch the workers; exit with their code."""
    if not _worker_command:
        raise UserError(
            "launch: name the command to run, e.g. tfft launch --workers=2 train --config=..."
        )
    if _worker_command[0] != "train":
        raise UserError(f"launch: the command must be train. Received: {_worker_command[0]!r}")
    from tfft.distribute.launcher import launch

    code = launch(_worker_command, common.FLAGS.workers, common.FLAGS.restarts)
    if code:
        sys.exit(code)


def main(argv: list[str] | None = None) -> None:
    """Split the command line into launch's flags and the workers' command, and run it."""
    arguments = list(argv or sys.argv)
    # From the first word without a dash on, the command line is that of the workers.
    position = next(
        (i for i, a in enumerate(arguments) if i and not a.startswith("-")), len(arguments)
    )
    _worker_command[:] = arguments[position:]
    common.main(run, arguments[:position])


if __name__ == "__main__":
    main()
