"""Escape untrusted text for Markdown: class names, paths, names of devices.

A class name can be any text. Unescaped, `<script>` would be HTML, and a line break would begin a
heading or another row of a table.
"""

import re
from html import escape

_MARKUP = re.compile(r"([\\`*_\[\]#|~$])")


def text(value: str) -> str:
    """Return a text escaped for use within a line: no line break, markup or HTML."""
    return _MARKUP.sub(r"\\\1", escape(_line(value), quote=False))


def code(value: str) -> str:
    """Return a text as a code span in one line."""
    line = _line(value)
    # A code span may hold backticks if its fence is longer than any run of them.
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"


def _line(value: str) -> str:
    """Return a text in one line; unprintable characters become U+FFFD."""
    line = " ".join(value.encode("utf-8", "replace").decode().split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
