"""Print the JSON schema of the YAML, with which editors complete and check it.

Example:
    tfft schema > tfft.schema.json
"""

import json

from tfft.cli import common
from tfft.config import schema


def run() -> None:
    """Print the schema."""
    print(json.dumps(schema(), indent=1))


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run the command."""
    common.main(run, argv)


if __name__ == "__main__":
    main()
