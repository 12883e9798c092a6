"""Search for hyperparameters: values of the YAML that are search spaces are tried out.

The same command goes on where it was. `best.yaml` in WORKDIR is a config for `tfft train`.
"""

from absl import flags

from tfft.cli import common

common.define_config()
common.define_workdir("directory of the search")
flags.DEFINE_integer("parallel", 1, "trials at once on this machine", lower_bound=1)


def verb() -> None:
    """Search, print the leaderboard."""
    f = common.FLAGS
    raw = common.raw()
    from tfft.search.space import Space

    Space(raw, f.config)  # mistakes first: what follows takes seconds
    common.load_tensorflow()
    from tfft.search.pipeline import search

    search(raw, common.workdir(), f.parallel, f.config)


def main(argv: list[str] | None = None) -> None:
    """The binary."""
    common.main(verb, argv)


if __name__ == "__main__":
    main()
