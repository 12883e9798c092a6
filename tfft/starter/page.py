"""Write sections of YAML with a comment for each key."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfft.config import plain_yaml
from tfft.utils.reading import printable

WIDTH = 100  # characters of a line
MAX_PATH = 500  # characters of a path in a comment
_COLUMN = 34  # where short comments begin


@dataclass(frozen=True)
class Entry:
    """A key of the config.

    Attributes:
        key: its name.
        value: a plain value.
        comment: why it was chosen, and the alternatives.
        doubt: what the user should check, or None.
    """

    key: str
    value: Any
    comment: str = ""
    doubt: str | None = None


def write(title: Sequence[str], sections: Mapping[str, Sequence[Entry]]) -> str:
    """Return sections as YAML with comments.

    Args:
        title: paragraphs of the first comment.
        sections: the keys of each section.
    """
    lines = [line for paragraph in title for line in _comment(paragraph, "")]
    for name, entries in sections.items():
        lines.append(f"{name}:")
        for entry in entries:
            lines += _entry_lines(entry)
    return "\n".join(lines) + "\n"


def _entry_lines(entry: Entry) -> list[str]:
    """Return a key with its comment beside it, or above it if the line would be long."""
    line = f"  {entry.key}: {plain_yaml.inline(entry.value)}"
    above = _comment(f"CHECK: {entry.doubt}", "  ") if entry.doubt else []
    beside = f"{line.ljust(_COLUMN)}  # {_escaped(entry.comment)}"
    if not entry.comment:
        return [*above, line]
    if len(beside) <= WIDTH:
        return [*above, beside]
    return [*above, *_comment(entry.comment, "  "), line]


def _comment(text: str, indent: str) -> list[str]:
    start = f"{indent}# "
    return textwrap.wrap(
        _escaped(text), WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False
    )


def _escaped(text: str) -> str:
    """Return a text with escapes of line breaks and of all else that cannot be seen."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def name(text: str | int, limit: int = 40) -> str:
    """Return a name from the data for a comment: one line, without what YAML refuses there.

    Args:
        text: the name.
        limit: largest number of characters.
    """
    text = str(text)
    if not text.isprintable() or text != text.strip():
        text = printable(ascii(text))
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
