"""What the readers of all formats share: rows and their places, files, columns, cells."""

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
    """The requested columns of a row.

    Attributes:
        place: where the row is, e.g. `FILE:LINE`.
        values: the cells, in the order of the requested columns.
    """

    place: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used.

    Attributes:
        place: where the row is.
        reason: what is wrong and how to fix it.
        count: number of rows it may contain: one for each line that an unclosed quote runs over.
    """

    place: str
    reason: str
    count: int = 1


Columns = Sequence[str | int]
LABEL_SEPARATOR = "\x1f"  # joins the labels of a row whose source has a list of them


def source_files(source: Source, key: str) -> list[Path]:
    """Return the files of a source, in sorted order within each glob.

    Raises:
        UserError: a path does not exist or is not a regular file, or a glob matches nothing.
    """
    items = [source.path] if isinstance(source.path, str) else source.path
    files: list[Path] = []
    for item in items:
        path = expanded(item)
        # First as a plain path: the name of a file may contain [ or *.
        if is_file(path):
            files.append(path)
        elif glob.has_magic(item):
            matched = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
            matched = [p for p in matched if is_file(p)]
            if not matched:
                raise UserError(f"{key}.path: {item} matches no file")
            files += matched
        elif path.is_dir():
            raise UserError(f"{key}.path: {item} is a folder; write {item.rstrip('/')}/*")
        elif path.exists():
            raise UserError(f"{key}.path: {item} is a FIFO or a device, not a regular file")
        else:
            siblings = path.parent.iterdir() if path.parent.is_dir() else ()
            hint = nearest(path.name, (p.name for p in siblings))
            raise UserError(f"{key}.path: no such file: {item}{hint}")
    return files


def column_indices(header: Sequence[str], columns: Columns, place: str) -> list[int]:
    """Return the positions of named columns in a header.

    Raises:
        UserError: a column is missing, or appears twice.
    """
    for column in columns:
        matches = [i for i, name in enumerate(header) if name == column]
        if not matches:
            raise UserError(
                f"{place}: no column {column!r} in the header{nearest(column, header)} "
                "(give columns as numbers if the file has no header)"
            )
        if len(matches) > 1:
            raise UserError(
                f"{place}: column {column!r} appears {len(matches)} times, as columns "
                f"{', '.join(map(str, matches))}; rename the others"
            )
    return [list(header).index(str(c)) for c in columns]


def check_column_indices(indices: Sequence[int], width: int, place: str) -> None:
    """Check that columns given by number exist.

    Raises:
        UserError: one does not.
    """
    missing = [i for i in indices if not 0 <= i < width]
    if missing:
        raise UserError(f"{place}: no column {missing[0]}: the row has {width} (0 to {width - 1})")


def row_from_mapping(record: Mapping[str, Any], columns: Columns, place: str) -> Row | BadRow:
    """Return the requested cells of an object: lists and objects as they are, others as text."""
    cells: list[Any] = []
    for column in columns:
        if column not in record:
            return BadRow(place, f"no key {column!r}{nearest(column, record)}")
        cell = record[column]
        if isinstance(cell, list | Mapping):
            cells.append(cell)
            continue
        # A bool is an int in Python.
        if isinstance(cell, bool) or not isinstance(cell, str | int | float):
            kind = "null" if cell is None else type(cell).__name__
            return BadRow(place, f"{column!r} is {kind}; text or a number is expected")
        if is_not_finite(cell):
            return BadRow(place, f"{column!r} is {cell}, as a missing value may be written")
        cells.append(str(cell))
    return Row(place, tuple(cells))


def with_texts(row: Row, columns: Columns) -> Row | BadRow:
    """Return a row whose cells are texts, or bytes; a list of labels is joined."""
    cells = []
    for column, cell in zip(columns, row.values, strict=True):
        if isinstance(cell, list | tuple) and all(type(c) in (str, int) for c in cell):
            cells.append(LABEL_SEPARATOR.join(map(str, cell)))
        elif isinstance(cell, str | bytes):
            cells.append(cell)
        else:
            kind = type(cell).__name__
            return BadRow(row.place, f"{column!r} is {kind}; text or a number is expected")
    return Row(row.place, tuple(cells))


def is_not_finite(value: Any) -> bool:
    """Return whether a value is NaN or infinite, numpy's float types included."""
    try:
        return not isinstance(value, str | bytes) and not math.isfinite(value)
    except (TypeError, OverflowError):  # not a number; an integer too large for a float
        return False
