"""Find a learning rate: train a few steps at rising rates, plot the loss. Keeps no weights."""

from pathlib import Path

from absl import flags

from tfft.bin import cli

cli.define_config()
flags.DEFINE_float("low", 1e-7, "the first rate")
flags.DEFINE_float("high", 1.0, "the last rate")
flags.DEFINE_integer("steps", 100, "steps between the two", lower_bound=20)
flags.DEFINE_string("output", "lr_find.html", "the page with the plot")


def verb() -> None:
    """Climb, print, plot."""
    f = cli.FLAGS
    config = cli.config()
    cli.load_tensorflow()
    from tfft import lr_find

    found = lr_find.find(config, f.low, f.high, f.steps)
    print(found.text())
    lr_find.write(found, Path(f.output))
    print(f"plot: {f.output}")


def main(argv: list[str] | None = None) -> None:
    """The binary."""
    cli.main(verb, argv)


if __name__ == "__main__":
    main()
