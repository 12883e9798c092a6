"""Text of unknown origin in Markdown: class names, paths, names of devices.

A class name is whatever a data set says. Shown as it is, `<script>` would be HTML and a line break
would begin a heading or another row of a table.
"""

import re
from html import escape

_MARKUP = re.compile(r"([\\`*_\[\]#|~$])")


def text(value: str) -> str:
    """Return a text that shows as it is within a line: no line break, markup or HTML."""
    return _MARKUP.sub(r"\\\1", escape(_line(value), quote=False))


def code(value: str) -> str:
    """Return a code span that shows a text as it is, in one line."""
    line = _line(value)
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    edge = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{edge}{line}{edge}{fence}"


def _line(value: str) -> str:
    """Return a text in one line, without characters that cannot be shown or written."""
    line = " ".join(value.encode("utf-8", "replace").decode().split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
