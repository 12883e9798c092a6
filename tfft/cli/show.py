"""Show the resolved config, the mask table and the estimated memory. Trains nothing.

For a search: its search space, and the same for its default values.

Example:
    tfft show --config=reviews.yaml
"""

from tfft.cli import common
from tfft.config import Config, dump, searches
from tfft.utils.tensorflow_setup import load_tensorflow

common.define_config()


def run() -> None:
    """Resolve the config, build the model, and print both."""
    config = _config()
    # `method: auto` is resolved below, which needs TensorFlow.
    if config.method.name != "auto":
        print(dump(config))
    load_tensorflow()
    from tfft.train import preview
    from tfft.training import advice

    if config.method.name == "auto":
        config = advice.resolve(config, None)
        print(dump(config))
    print(preview(config))


def _config() -> Config:
    raw = common.raw_config()
    if not searches(raw):
        return common.config()
    from tfft.search.space import Space

    space = Space(raw, common.FLAGS.config)
    print("".join(f"# {line}\n" for line in space.text()))
    return space.config(space.defaults)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run the command."""
    common.main(run, argv)


if __name__ == "__main__":
    main()
