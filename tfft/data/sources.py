"""Readers of rows: one function a format, streaming, each row with the place it came from.

A row is a tuple of the wanted columns as text; a picture is the path of its file, or its bytes. A
reader yields `Row`s and, for what it cannot read, `BadRow`s, so that one policy
(`data.on_bad_row`) treats every format alike.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from tfft.config import Source
from tfft.data import array_files, text_files
from tfft.data.records import SEVERAL, BadRow, Columns, Row, paths
from tfft.utils.reading import LONGEST_TEXT, expanded, is_file, is_unicode, open_regular

__all__ = ["SEVERAL", "SOURCES", "BadRow", "Columns", "Row", "content", "paths", "read"]

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
    }
)


def read(
    source: Source, columns: Columns, key: str, multi_label: bool = False
) -> Iterator[Row | BadRow]:
    """All rows of a source, every one with its columns present and its texts not empty.

    `several`: whether a row may have several labels, or none.
    """
    first = 1 if source.source == "images" else 0  # a path may have any bytes in it
    for row in SOURCES[source.source](source, columns, key):
        yield _checked(row, columns, multi_label, first) if isinstance(row, Row) else row


def content(source: Source, key: str) -> Iterator[bytes]:
    """What changes when the rows could."""
    if source.source == "tfds":
        # Prepared sets do not change under a version; the name may carry one.
        yield f"{source.path}|{key}".encode()
        builder = array_files.tfds_builder(source, key)
        yield str(builder.info.full_name).encode()
        yield str(builder.data_path).encode()
        return
    for path in paths(source, key):
        with open_regular(path) as file:
            # The name stands in the messages of bad rows.
            yield os.fsencode(path)
            yield hashlib.file_digest(file, "sha256").digest()


def with_paths(rows: Iterator[Row | BadRow]) -> Iterator[Row | BadRow]:
    """Rows whose first column is the path of a picture: from the folder of the table that names it,
    else from the working directory."""
    for row in rows:
        if isinstance(row, BadRow) or isinstance(row.values[0], bytes):
            yield row
            continue
        path = expanded(row.values[0])
        table = Path(row.place.rpartition(":")[0])
        near = table.parent / path
        found = near if is_file(near) or not is_file(path) else path
        yield Row(row.place, (str(found), *row.values[1:]))


def _checked(row: Row, columns: Columns, multi_label: bool, first: int) -> Row | BadRow:
    for at, (column, value) in enumerate(zip(columns, row.values, strict=True)):
        if isinstance(value, bytes) or at < first:
            continue
        if len(value) > LONGEST_TEXT:
            reason = f"has {len(value):,} characters; at most {LONGEST_TEXT:,} are read"
            return BadRow(row.place, f"column {column!r} {reason}")
        if not is_unicode(value):
            reason = "holds a lone surrogate: it was written or cut wrongly"
            return BadRow(row.place, f"column {column!r} {reason}")
        if multi_label and at == len(columns) - 1:
            continue
        if SEVERAL in value:
            return BadRow(row.place, f"column {column!r} holds several labels; one is expected")
        if not value.strip():
            return BadRow(row.place, f"column {column!r} is empty; fill it or drop the row")
    return row
