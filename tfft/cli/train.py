"""Fine-tune a model from a YAML file.

Run the same command to resume an interrupted run. With several workers, each learns of the others
from TF_CONFIG, or from --workers and --worker.

Example:
    tfft train --config=reviews.yaml --workdir=runs/reviews --set=train.epochs=2
"""

import json
import os

from absl import flags

from tfft.cli import common
from tfft.utils.errors import UserError
from tfft.utils.tensorflow_setup import load_tensorflow

common.define_config()
common.define_workdir("run directory; default: runs/ and the config's name")
flags.DEFINE_list("workers", None, "HOST:PORT of every worker, in place of TF_CONFIG")
flags.DEFINE_integer("worker", 0, "index of this worker in --workers, from 0", lower_bound=0)


def run() -> None:
    """Load the config, then TensorFlow, then train."""
    config = common.config()
    if common.FLAGS.workers:
        os.environ["TF_CONFIG"] = _cluster(common.FLAGS.workers, common.FLAGS.worker)
    load_tensorflow()
    from tfft import train

    train.run(config, common.workdir())


def _cluster(workers: list[str], index: int) -> str:
    """Return TF_CONFIG for worker `index` of `workers`.

    Raises:
        UserError: an address is not HOST:PORT, or there is no such worker.
    """
    for worker in workers:
        host, _, port = worker.rpartition(":")
        if not host or not port.isdigit():
            raise UserError(f"--workers: must be HOST:PORT,HOST:PORT,... Received: {worker!r}")
    if index >= len(workers):
        raise UserError(
            f"--worker: must be below {len(workers)}, the number of --workers. Received: {index}"
        )
    task = {"type": "worker", "index": index}
    return json.dumps({"cluster": {"worker": workers}, "task": task})


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run the command."""
    common.main(run, argv)


if __name__ == "__main__":
    main()
