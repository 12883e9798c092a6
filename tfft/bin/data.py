"""Profile the data of a config: classes, lengths, duplicates, leaks, bad rows. Trains nothing."""

import json
from pathlib import Path

from absl import flags

from tfft.bin import cli

cli.define_config()
flags.DEFINE_string("output", None, "JSON file for the profile")


def verb() -> None:
    """Read every split, print the profile."""
    config = cli.config()
    cli.load_tensorflow()
    from tfft import preprocess
    from tfft.data import profile

    found = profile.profile(config, preprocess.load(config.model, config.data))
    print(profile.text(found))
    if cli.FLAGS.output is not None:
        text = json.dumps(found, indent=1, ensure_ascii=False)
        Path(cli.FLAGS.output).write_text(text, encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """The binary."""
    cli.main(verb, argv)


if __name__ == "__main__":
    main()
