"""Start several workers on this machine: tfft launch --workers=2 [--restarts=3] train --config=...

What follows the verb's name is handed to every worker. When one ends, all are ended; with
--restarts they are started again and go on at the last checkpoint.
"""

import sys

from absl import flags

from tfft.cli import common
from tfft.utils.errors import UserError

flags.DEFINE_integer("workers", 2, "how many", lower_bound=1, upper_bound=64)
flags.DEFINE_integer("restarts", 0, "how often all are started again when one is lost", 0)

_rest: list[str] = []


def verb() -> None:
    """Start, watch, end with the workers' exit code."""
    if not _rest:
        raise UserError(
            "launch: name the verb to run, e.g. tfft launch --workers=2 train --config=..."
        )
    if _rest[0] != "train":
        raise UserError(f"launch: runs `train` only; received {_rest[0]!r}")
    from tfft.distribute.launcher import launch

    code = launch(_rest, common.FLAGS.workers, common.FLAGS.restarts)
    if code:
        sys.exit(code)


def main(argv: list[str] | None = None) -> None:
    """The binary: its own flags stand before the verb, the verb's behind it."""
    given = list(argv or sys.argv)
    at = next((i for i, a in enumerate(given) if i and not a.startswith("-")), len(given))
    _rest[:] = given[at:]
    common.main(verb, given[:at])


if __name__ == "__main__":
    main()
