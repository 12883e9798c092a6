"""Offsets into raw texts on the host, in bytes of UTF-8 or in characters.

Clients of a served model send UTF-8, so tokens are located by bytes, on both sides. Answers give
both.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


def byte_bounds(text: str) -> Sequence[int]:
    """Return the byte offset of each character offset, from 0 to the length of the text."""
    if text.isascii():
        return range(len(text) + 1)
    return list(accumulate((len(c.encode()) for c in text), initial=0))


def to_characters(text: str, offsets: Sequence[int]) -> list[int]:
    """Convert offsets in bytes of UTF-8 to offsets in characters.

    An offset within a character becomes that of its end.

    Args:
        text: the text.
        offsets: from 0 to the bytes of the text.
    """
    bounds = byte_bounds(text)
    return [bisect_left(bounds, offset) for offset in offsets]
