"""Offsets into raw texts on the host, in bytes of UTF-8 or in characters.

Clients of a served model send UTF-8, so tokens are located by bytes, on both sides. Answers give
both.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple


class LocatedTokens(NamedTuple):
    """The tokens of a row, and where in its raw texts each begins and ends.

    Attributes:
        ids: token ids, special tokens included.
        segments: segment ids.
        truncated: whether tokens were cut off.
        starts: the first byte of each token in its text; 0 for special tokens.
        ends: the byte after its last; 0 for special tokens.
        sequence: 0 for a token of the first text, 1 for one of the second, -1 for special tokens.
    """

    ids: list[int]
    segments: list[int]
    truncated: bool
    starts: list[int]
    ends: list[int]
    sequence: list[int]


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
