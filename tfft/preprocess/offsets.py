"""Offsets into raw texts on the host, in bytes of UTF-8.

Clients of a served model send UTF-8, so tokens are located by bytes, on both sides.
"""

from collections.abc import Sequence
from itertools import accumulate


def byte_bounds(text: str) -> Sequence[int]:
    """Return the byte offset of each character offset, from 0 to the length of the text."""
    if text.isascii():
        return range(len(text) + 1)
    return list(accumulate((len(c.encode()) for c in text), initial=0))
