"""Decide whether the first row of a csv or tsv file names its columns."""

import re
from collections.abc import Sequence

from tfft.starter import names

_NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?", re.IGNORECASE)
_MAX_CHARACTERS, _MAX_WORDS = 40, 3  # of a name


def is_header(
    cells: Sequence[str], rows: Sequence[Sequence[str | None]]
) -> tuple[bool, str | None]:
    """Return whether the cells of a first row are names.

    A number, a repeated or long cell, or one that occurs again below it is a value. Otherwise a
    name that is common for texts or labels decides; without one, short cells count as names.

    Args:
        cells: of the first row.
        rows: those below it.

    Returns:
        The decision, and what makes it uncertain, or None.
    """
    below = [{row[i] for row in rows} for i in range(len(cells))]
    is_value = any(
        _NUMBER.fullmatch(cell.strip()) or (cell.strip() and cell in values)
        for cell, values in zip(cells, below, strict=True)
    )
    long = any(len(c) > _MAX_CHARACTERS or len(c.split()) > _MAX_WORDS for c in cells)
    if is_value or long:
        return False, None
    if any(names.is_common(cell) for cell in cells):
        return True, None
    if len(set(cells)) < len(cells):
        return False, "the first row is read as data, not as the names of the columns"
    return (
        True,
        "the first row is read as the names of the columns; if it is data, give --label by number",
    )
