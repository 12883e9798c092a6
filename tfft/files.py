"""Files that are whole at any moment."""

import os
from pathlib import Path


def write_atomic(path: Path, text: str) -> None:
    """Write a text to a temporary name beside `path`, then rename it."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
