"""Find a learning rate: train a few steps at rising rates and plot the loss. Saves no weights.

Example:
    tfft lr-find --config=reviews.yaml --output=rates.html
"""

from pathlib import Path

from absl import flags

from tfft.cli import common
from tfft.utils.tensorflow_setup import load_tensorflow

common.define_config()
flags.DEFINE_float("low", 1e-7, "first learning rate")
flags.DEFINE_float("high", 1.0, "last learning rate")
flags.DEFINE_integer("steps", 100, "number of steps", lower_bound=20)
flags.DEFINE_string("output", "lr_find.html", "HTML file for the plot")


def run() -> None:
    """Run the learning-rate finder, print the suggestion and write the plot."""
    flag_values = common.FLAGS
    config = common.config()
    load_tensorflow()
    from tfft.search import lr_finder

    curve = lr_finder.find(config, flag_values.low, flag_values.high, flag_values.steps)
    print(curve.text())
    lr_finder.write(curve, Path(flag_values.output))
    print(f"plot: {flag_values.output}")


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run the command."""
    common.main(run, argv)


if __name__ == "__main__":
    main()
