"""Search for hyperparameters: values of the YAML that are search spaces are tried out.

The same command goes on where it was. `best.yaml` in WORKDIR is a config for `tfft train`.
"""

from absl import flags

from tfft.bin import cli

cli.define_config()
cli.define_workdir("directory of the search")
flags.DEFINE_integer("parallel", 1, "trials at once on this machine", lower_bound=1)


def verb() -> None:
    """Search, print the leaderboard."""
    f = cli.FLAGS
    raw = cli.raw()
    from tfft.tuning.space import Space

    Space(raw, f.config)  # mistakes first: what follows takes seconds
    cli.load_tensorflow()
    from tfft.tuning.search import search

    search(raw, cli.workdir(), f.parallel, f.config)


def main(argv: list[str] | None = None) -> None:
    """The binary."""
    cli.main(verb, argv)


if __name__ == "__main__":
    main()
