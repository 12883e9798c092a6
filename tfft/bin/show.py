"""Show what a config means: every value, the mask table, the memory it needs. Trains nothing."""

from tfft.bin import cli
from tfft.config import dump

cli.define_config()


def verb() -> None:
    """Resolve, assemble, print."""
    config = cli.config()
    if config.method.name != "auto":
        print(dump(config))
    cli.load_tensorflow()
    from tfft.train import advised, preview

    if config.method.name == "auto":
        config = advised(config, None)
        print(dump(config))
    print(preview(config))


def main(argv: list[str] | None = None) -> None:
    """The binary."""
    cli.main(verb, argv)


if __name__ == "__main__":
    main()
