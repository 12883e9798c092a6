"""Find a learning rate: train a few steps at rising rates, plot the loss. Keeps no weights."""

from pathlib import Path

from absl import flags

from tfft.cli import common

common.define_config()
flags.DEFINE_float("low", 1e-7, "the first rate")
flags.DEFINE_float("high", 1.0, "the last rate")
flags.DEFINE_integer("steps", 100, "steps between the two", lower_bound=20)
flags.DEFINE_string("output", "lr_find.html", "the page with the plot")


def verb() -> None:
    """Climb, print, plot."""
    f = common.FLAGS
    config = common.config()
    common.load_tensorflow()
    from tfft.search import lr_finder

    found = lr_finder.find(config, f.low, f.high, f.steps)
    print(found.text())
    lr_finder.write(found, Path(f.output))
    print(f"plot: {f.output}")


def main(argv: list[str] | None = None) -> None:
    """The binary."""
    common.main(verb, argv)


if __name__ == "__main__":
    main()
