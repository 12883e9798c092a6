"""What the readers of every format share: rows with their places, files, columns, cells."""

import glob
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfft.config import Source
from tfft.utils.errors import UserError, nearest
from tfft.utils.reading import expanded, is_file


@dataclass(frozen=True)
class Row:
    """The wanted columns of one row, and where it stands."""

    place: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: where it stands, what is wrong, what would do.

    `count` is how many rows it may have been: each line that an unclosed quote runs over.
    """

    place: str
    reason: str
    count: int = 1


Columns = Sequence[str | int]
SEVERAL = "\x1f"  # between the labels of a row whose source gives a list of them


def paths(source: Source, key: str) -> list[Path]:
    """The files of a source, in sorted order within each glob.

    Raises:
        UserError: a path does not exist or is no regular file, or a glob matches nothing.
    """
    given = [source.path] if isinstance(source.path, str) else source.path
    found: list[Path] = []
    for item in given:
        path = expanded(item)
        if is_file(path):
            found.append(path)
        elif glob.has_magic(item):
            matched = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
            matched = [p for p in matched if is_file(p)]
            if not matched:
                raise UserError(f"{key}.path: {item} matches no file")
            found += matched
        elif path.is_dir():
            raise UserError(f"{key}.path: {item} is a folder; write {item.rstrip('/')}/*")
        elif path.exists():
            raise UserError(f"{key}.path: {item} is a FIFO or a device, not a regular file")
        else:
            near = path.parent.iterdir() if path.parent.is_dir() else ()
            hint = nearest(path.name, (p.name for p in near))
            raise UserError(f"{key}.path: no such file: {item}{hint}")
    return found


def by_name(header: Sequence[str], columns: Columns, place: str) -> list[int]:
    """The positions of named columns.

    Raises:
        UserError: one is missing, or is there twice.
    """
    for column in columns:
        at = [i for i, name in enumerate(header) if name == column]
        if not at:
            raise UserError(
                f"{place}: no column {column!r} in the header{nearest(column, header)} "
                "(a column given as a number means a file without a header)"
            )
        if len(at) > 1:
            raise UserError(
                f"{place}: column {column!r} is there {len(at)} times, as columns "
                f"{', '.join(map(str, at))}; rename the others"
            )
    return [list(header).index(str(c)) for c in columns]


def check_positions(indices: Sequence[int], width: int, place: str) -> None:
    """Columns by number must be there.

    Raises:
        UserError: one is not.
    """
    wrong = [i for i in indices if not 0 <= i < width]
    if wrong:
        raise UserError(f"{place}: no column {wrong[0]}: the row has {width} (0 to {width - 1})")


def from_mapping(value: Mapping[str, Any], columns: Columns, place: str) -> Row | BadRow:
    """The wanted cells of an object, as text."""
    cells = []
    for column in columns:
        if column not in value:
            return BadRow(place, f"no key {column!r}{nearest(column, value)}")
        cell = value[column]
        if isinstance(cell, list) and all(type(c) in (str, int) for c in cell):
            cells.append(SEVERAL.join(map(str, cell)))
            continue
        if isinstance(cell, bool) or not isinstance(cell, str | int | float):
            kind = "null" if cell is None else type(cell).__name__
            return BadRow(place, f"{column!r} is {kind}; text or a number is expected")
        if not_a_number(cell):
            return BadRow(place, f"{column!r} is {cell}, as a missing value may be written")
        cells.append(str(cell))
    return Row(place, tuple(cells))


def not_a_number(value: Any) -> bool:
    """Return whether a value is NaN or infinite; float types of numpy's included."""
    try:
        return not isinstance(value, str | bytes) and not math.isfinite(value)
    except (TypeError, OverflowError):  # no number; an integer of hundreds of digits
        return False
