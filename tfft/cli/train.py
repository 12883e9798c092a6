"""Fine-tune a model as a YAML file says.

The same command goes on where an interrupted run stopped. One of several workers knows the others
by TF_CONFIG, or by --workers and --worker.
"""

import json
import os

from absl import flags

from tfft.cli import common
from tfft.utils.errors import UserError

common.define_config()
common.define_workdir("run directory; default: runs/ and the config's name")
flags.DEFINE_list("workers", None, "HOST:PORT of every worker, in place of TF_CONFIG")
flags.DEFINE_integer("worker", 0, "which of --workers this one is, from 0", lower_bound=0)


def verb() -> None:
    """Load the config, then TensorFlow, then run."""
    config = common.config()
    if common.FLAGS.workers:
        os.environ["TF_CONFIG"] = _cluster(common.FLAGS.workers, common.FLAGS.worker)
    common.load_tensorflow()
    from tfft.train import run

    run(config, common.workdir())


def _cluster(workers: list[str], index: int) -> str:
    for worker in workers:
        host, _, port = worker.rpartition(":")
        if not host or not port.isdigit():
            raise UserError(f"--workers: must be HOST:PORT,HOST:PORT,...; received {worker!r}")
    if index >= len(workers):
        raise UserError(f"--worker: must be below {len(workers)}, as many as --workers; is {index}")
    task = {"type": "worker", "index": index}
    return json.dumps({"cluster": {"worker": workers}, "task": task})


def main(argv: list[str] | None = None) -> None:
    """The binary."""
    common.main(verb, argv)


if __name__ == "__main__":
    main()
