"""Print the JSON schema of the YAML; editors complete and check from it."""

import json

from tfft.cli import common
from tfft.config import schema


def verb() -> None:
    """Print it."""
    print(json.dumps(schema(), indent=1))


def main(argv: list[str] | None = None) -> None:
    """The binary."""
    common.main(verb, argv)


if __name__ == "__main__":
    main()
