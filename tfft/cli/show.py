"""Show what a config means: every value, the mask table, the memory it needs. Trains nothing.

Of a search: its space, and all this of the middle of it.
"""

from tfft.cli import common
from tfft.config import Config, dump, searches

common.define_config()


def verb() -> None:
    """Resolve, assemble, print."""
    config = _config()
    if config.method.name != "auto":
        print(dump(config))
    common.load_tensorflow()
    from tfft.train import preview
    from tfft.training import advice

    if config.method.name == "auto":
        config = advice.resolve(config, None)
        print(dump(config))
    print(preview(config))


def _config() -> Config:
    raw = common.raw()
    if not searches(raw):
        return common.config()
    from tfft.search.space import Space

    space = Space(raw, common.FLAGS.config)
    print("".join(f"# {line}\n" for line in space.text()))
    return space.config(space.defaults)


def main(argv: list[str] | None = None) -> None:
    """The binary."""
    common.main(verb, argv)


if __name__ == "__main__":
    main()
