"""Fine-tune a model as a YAML file says.

The same command goes on where an interrupted run stopped.
"""

from tfft.bin import cli

cli.define_config()
cli.define_workdir("run directory; default: runs/ and the config's name")


def verb() -> None:
    """Load the config, then TensorFlow, then run."""
    config = cli.config()
    cli.load_tensorflow()
    from tfft.train import run

    run(config, cli.workdir())


def main(argv: list[str] | None = None) -> None:
    """The binary."""
    cli.main(verb, argv)


if __name__ == "__main__":
    main()
