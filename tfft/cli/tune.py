"""Search for hyperparameters: try values of the search spaces in the YAML.

Run the same command to resume. `best.yaml` in WORKDIR is a config for `tfft train`.

Example:
    tfft tune --config=search.yaml --workdir=runs/search --parallel=2
"""

from absl import flags

from tfft.cli import common
from tfft.utils.tensorflow_setup import load_tensorflow

common.define_config()
common.define_workdir("directory of the search")
flags.DEFINE_integer("parallel", 1, "parallel trials on this machine", lower_bound=1)


def run() -> None:
    """Run the search and print the leaderboard."""
    flag_values = common.FLAGS
    raw = common.raw_config()
    from tfft.search.space import Space

    Space(raw, flag_values.config)  # report mistakes before the slow import
    load_tensorflow()
    from tfft.search.pipeline import search

    search(raw, common.workdir(), flag_values.parallel, flag_values.config)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run the command."""
    common.main(run, argv)


if __name__ == "__main__":
    main()
