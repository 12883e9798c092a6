"""Decide whether the first row of a csv or tsv file names its columns."""

import re
from collections.abc import Collection, Sequence

from tfft.starter import names

_NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?", re.IGNORECASE)
_MAX_CHARACTERS, _MAX_WORDS = 40, 3  # of a name


def is_header(
    cells: Sequence[str], rows: Sequence[Sequence[str | None]]
) -> tuple[bool, str | None]:
    """Return whether the cells of a first row are names.

    A name that is common for texts or labels, and does not occur again below it, decides; so do the
    numbers from 0, which pandas writes for columns without names. Otherwise a number, a repeated or
    long cell, or one that occurs again below it is a value, and short cells count as names.

    Args:
        cells: of the first row.
        rows: those below it.

    Returns:
        The decision, and what makes it uncertain, or None.
    """
    below = [{row[i] for row in rows} for i in range(len(cells))]
    repeated = [bool(c.strip()) and c in values for c, values in zip(cells, below, strict=True)]
    is_value = any(repeated) or any(_NUMBER.fullmatch(cell.strip()) for cell in cells)
    is_long = any(len(c) > _MAX_CHARACTERS or len(c.split()) > _MAX_WORDS for c in cells)
    if any(names.is_role(c) and not again for c, again in zip(cells, repeated, strict=True)):
        return True, _NAMES if is_value or is_long else None
    if _are_numbers_from_0(cells) and not all(repeated):  # 1 may be a class too
        return True, _NAMES if any(repeated) else None
    if is_value or is_long:
        return False, _DATA if any(map(_is_like_name, cells, below)) else None
    if any(map(names.is_common, cells)):
        return True, None
    return (False, _DATA) if len(set(cells)) < len(cells) else (True, _NAMES)


_NAMES = "the first row is read as the names of the columns; if it is data, give --label by number"
_DATA = "the first row is read as data; if it names the columns, give --label by name"


def _are_numbers_from_0(cells: Sequence[str]) -> bool:
    """Return whether cells are 0, 1, 2 and so on, after the blank name of an index or without."""
    numbered = cells[1:] if cells[0] == "" else cells
    return bool(numbered) and list(numbered) == [str(n) for n in range(len(numbered))]


def _is_like_name(cell: str, below: Collection[str | None]) -> bool:
    """Return whether a cell could be a name: a word above texts of several."""
    texts = sum(len((value or "").split()) > 2 for value in below)
    return cell.isidentifier() and 2 * texts > len(below)
