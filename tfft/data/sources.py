"""Readers of rows: one function per format, streaming, each row with the place it came from.

A row is a tuple of the requested columns as text; an image is the path of its file, or its bytes. A
reader yields `Row`s and, for what it cannot read, `BadRow`s, so that one policy (`data.on_bad_row`)
applies to all formats.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from tfft.config import Source
from tfft.data import array_files, conll, squad, text_files
from tfft.data.records import LABEL_SEPARATOR, BadRow, Columns, Row, source_files
from tfft.data.targets import CLASS, Targets
from tfft.utils.reading import LONGEST_TEXT, expanded, is_file, is_unicode, open_regular

__all__ = [
    "LABEL_SEPARATOR",
    "SOURCES",
    "BadRow",
    "Columns",
    "Row",
    "content",
    "read",
    "source_files",
]

# (source, columns, the source's key in the config) -> its rows
Reader = Callable[[Source, Columns, str], Iterator[Row | BadRow]]
SOURCES: Mapping[str, Reader] = MappingProxyType(
    {
        "csv": text_files.delimited,
        "tsv": text_files.delimited,
        "jsonl": text_files.json_lines,
        "parquet": array_files.parquet,
        "tfds": array_files.tfds,
        "images": array_files.images,
        "npz": array_files.npz,
        "conll": conll.conll,
        "squad": squad.rows,
    }
)


def read(
    source: Source, columns: Columns, key: str, targets: Targets = CLASS
) -> Iterator[Row | BadRow]:
    """Yield all rows of a source; a row with an empty or unusable column becomes a `BadRow`.

    Args:
        source: the files.
        columns: names or indices of the columns, the target columns last.
        key: the source's key in the config, for errors.
        targets: what the target columns hold.
    """
    # A path may hold any bytes, so it is not checked as text.
    first_checked = 1 if source.source == "images" else 0
    for row in SOURCES[source.source](source, columns, key):
        if isinstance(row, Row):
            row = targets.read(row, columns)
        yield _check_row(row, columns, targets, first_checked) if isinstance(row, Row) else row


def content(source: Source, key: str) -> Iterator[bytes]:
    """Yield what identifies the rows of a source, for a digest: it changes if they could change."""
    if source.source == "tfds":
        # A prepared dataset is immutable under its version, which the full name includes.
        yield f"{source.path}|{key}".encode()
        builder = array_files.tfds_builder(source, key)
        yield str(builder.info.full_name).encode()
        yield str(builder.data_path).encode()
        return
    for path in source_files(source, key):
        with open_regular(path) as file:
            # The cached messages of bad rows contain the path.
            yield os.fsencode(path)
            yield hashlib.file_digest(file, "sha256").digest()


def with_image_paths(rows: Iterator[Row | BadRow], index: int = 0) -> Iterator[Row | BadRow]:
    """Yield the rows with the path of their image resolved.

    A relative path starts from the folder of the table that names it, else from the working
    directory.

    Args:
        rows: the rows of a table.
        index: of the column with the path.
    """
    for row in rows:
        if isinstance(row, BadRow) or isinstance(row.values[index], bytes):
            yield row
            continue
        path = expanded(row.values[index])
        table = Path(row.place.rpartition(":")[0])
        beside_table = table.parent / path
        resolved = beside_table if is_file(beside_table) or not is_file(path) else path
        yield Row(row.place, (*row.values[:index], str(resolved), *row.values[index + 1 :]))


def _check_row(row: Row, columns: Columns, targets: Targets, first_checked: int) -> Row | BadRow:
    """Return the row, or a bad row if one of its columns cannot be used."""
    first_target = len(columns) - targets.width
    for index, (column, value) in enumerate(zip(columns, row.values, strict=True)):
        if not isinstance(value, str) or index < first_checked:
            continue
        if len(value) > LONGEST_TEXT:
            reason = f"has {len(value):,} characters; at most {LONGEST_TEXT:,} are read"
            return BadRow(row.place, f"column {column!r} {reason}")
        if not is_unicode(value):
            reason = "holds a lone surrogate: it was encoded or truncated wrongly"
            return BadRow(row.place, f"column {column!r} {reason}")
        if index >= first_target:
            problem = targets.problem(value)
        elif LABEL_SEPARATOR in value:
            problem = "holds a list; a text is expected"
        else:
            problem = None if value.strip() else "is empty; fill it or drop the row"
        if problem is not None:
            return BadRow(row.place, f"column {column!r} {problem}")
    return row
