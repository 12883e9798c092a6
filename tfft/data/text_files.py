"""Readers of csv, tsv and jsonl files: streaming, with the line that each row came from."""

import codecs
import csv
import io
import json
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tfft.config import Source
from tfft.data.records import (
    BadRow,
    Columns,
    Row,
    check_column_indices,
    column_indices,
    row_from_mapping,
    source_files,
)
from tfft.utils import console
from tfft.utils.errors import UserError
from tfft.utils.reading import LONGEST_LINE, open_regular

# Lines in one row: rare in texts, but soon reached by an unclosed quote.
_SUSPICIOUS_LINES: float = 50


def delimited(source: Source, columns: Columns, key: str) -> Iterator[Row | BadRow]:
    """Yield the rows of csv and tsv files."""
    for path in source_files(source, key):
        yield from _delimited_file(path, source, columns)


def first_cells(source: Source, key: str) -> list[str]:
    """Return the cells of the first row of a csv or tsv source, which may be its header.

    Args:
        source: the files; the first one is read.
        key: the source's key in the config, for errors.

    Raises:
        UserError: the file is empty, or its first row cannot be read.
    """
    path = source_files(source, key)[0]
    reader = _csv_reader(path, source)
    line = 1
    try:
        for cells in reader:
            if cells and cells != [""]:
                return cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{line}: {error}; fix the quotes or set quoting: false") from None
    raise UserError(f"{path}: empty; needs at least one row")


def size_of_lines(path: Path, encoding: str, count: int) -> int:
    """Return the number of bytes of the first lines of a file."""
    encoder = codecs.getincrementalencoder(encoding)("replace")
    return sum(len(encoder.encode(line)) for line in islice(decoded_lines(path, encoding), count))


def _csv_reader(path: Path, source: Source) -> Any:
    # By default a quote is a plain character in tsv files.
    quoting = source.source == "csv" if source.quoting is None else source.quoting
    # csv's default limit is 131,072 characters.
    csv.field_size_limit(LONGEST_LINE)
    return csv.reader(
        decoded_lines(path, source.encoding),
        delimiter="," if source.source == "csv" else "\t",
        quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE,
        strict=True,  # raise for malformed quotes instead of guessing
    )


def _delimited_file(path: Path, source: Source, columns: Columns) -> Iterator[Row | BadRow]:
    reader = _csv_reader(path, source)
    indices, width, warn_lines = None, None, _SUSPICIOUS_LINES
    if isinstance(columns[0], int):
        indices = [int(c) for c in columns]
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            reason = f"{error}; fix the quotes or set quoting: false"
            yield _bad_row(path, start, reader.line_num, reason)
            continue
        if not cells or cells == [""]:
            continue  # a blank line is not a row
        if indices is None:
            indices, width = column_indices(cells, columns, f"{path}:{start}"), len(cells)
            continue
        if width is None:
            width = len(cells)
            check_column_indices(indices, width, f"{path}:{start}")
        if len(cells) != width:
            reason = f"{len(cells)} columns where {width} are expected"
            reason += "; fix the separators or the quotes"
            yield _bad_row(path, start, reader.line_num, reason)
            continue
        if reader.line_num - start >= warn_lines:
            warn_lines = math.inf  # log it once
            console.log(
                f"data: {path}: lines {start} to {reader.line_num} are read as one row because of "
                "their quotes; is one unclosed?"
            )
        yield Row(f"{path}:{start}", tuple(cells[i] for i in indices))
    if indices is None:
        raise UserError(f"{path}: empty; needs a header line with {', '.join(map(str, columns))}")


def _bad_row(path: Path, first: int, last: int, reason: str) -> BadRow:
    """Return a bad row: one line, or all lines that an unclosed quote runs over."""
    count = max(1, last - first + 1)
    if count > 1:
        reason += f". Their quotes make one row of the {count} lines {first} to {last}"
    return BadRow(f"{path}:{first}", reason, count)


def decoded_lines(path: Path, encoding: str) -> Iterator[str]:
    """Yield the decoded lines of a file with their line ends, without a byte-order mark.

    A null character is replaced by U+FFFD.

    Raises:
        UserError: the file cannot be read, is not in this encoding, or has a line of more than
            `LONGEST_LINE` characters.
    """
    is_utf8 = encoding.lower().replace("_", "-") in ("utf-8", "utf8")
    number = 0
    with open_regular(path) as raw:
        try:
            "".encode(encoding)  # raises for codecs that are not text encodings, such as hex
            # newline="": the csv reader handles line breaks within quotes itself.
            file = io.TextIOWrapper(raw, "utf-8-sig" if is_utf8 else encoding, newline="")
        except (LookupError, ValueError):
            raise UserError(
                f"data: unknown encoding {encoding!r}; try utf-8, latin-1 or cp1252"
            ) from None
        while True:
            try:
                # A limit, because a file without line breaks would be read into memory as one line.
                line = file.readline(LONGEST_LINE)
            except UnicodeError as error:
                raise UserError(_undecodable(path, encoding, number, error)) from None
            if not line:
                return
            number += 1
            if len(line) == LONGEST_LINE:
                raise UserError(f"{path}:{number}: a line of more than {LONGEST_LINE:,} characters")
            yield line.replace("\0", "\ufffd")


def _undecodable(path: Path, encoding: str, lines: int, error: UnicodeError) -> str:
    """Return the message for a file that is not in its encoding.

    Args:
        path: of the file.
        encoding: as configured.
        lines: number of lines that were read before the error.
        error: of the codec.
    """
    if not isinstance(error, UnicodeDecodeError):  # e.g. utf-16 without a byte-order mark
        return f"{path}: not {encoding}: {error}; declare the file's encoding, e.g. utf-16-le"
    # The codec decodes ahead in blocks, so `lines` is too small: find the line by its bytes.
    number, byte = _first_undecodable(path, encoding, lines)
    return (
        f"{path}:{number}: byte 0x{byte:02x} is not {error.encoding}; declare the file's "
        "encoding, e.g. encoding: latin-1"
    )


def _first_undecodable(path: Path, encoding: str, lines: int) -> tuple[int, int]:
    """Return the number and the offending byte of the first line that cannot be decoded."""
    with open_regular(path) as file:
        for number, raw in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
            try:
                raw.decode(encoding)
            except UnicodeError as error:
                return number, raw[getattr(error, "start", 0)]
    return lines + 1, 0


def json_lines(source: Source, columns: Columns, key: str) -> Iterator[Row | BadRow]:
    """Yield the rows of jsonl files."""
    if isinstance(columns[0], int):
        raise UserError(f"{key}: columns of jsonl are named, not numbered. Received: {columns[0]}")
    for place, record in json_records(source, key):
        is_bad = isinstance(record, BadRow)
        yield record if is_bad else row_from_mapping(record, columns, place)


def json_records(source: Source, key: str) -> Iterator[tuple[str, Any]]:
    """Yield the place of each line of jsonl files with its object, or with a `BadRow`."""
    for path in source_files(source, key):
        for number, line in enumerate(decoded_lines(path, source.encoding), 1):
            if line.strip():
                yield f"{path}:{number}", _json_record(line, f"{path}:{number}")


def _json_record(line: str, place: str) -> dict[str, Any] | BadRow:
    try:
        value = json_object(line)
    except ValueError as error:
        return BadRow(place, f"{error}; one object a line is expected")
    if not isinstance(value, dict):
        return BadRow(place, f"holds {type(value).__name__}, not an object")
    return value


def json_object(line: str) -> Any:
    """Return the value of a line of JSON.

    Raises:
        ValueError: the line is not JSON, or an object in it has a key twice.
    """
    try:
        return _DECODER.decode(line)
    except json.JSONDecodeError as error:
        reason = error.msg
    except RecursionError:
        reason = "nested too deep"
    except ValueError as error:  # a duplicate key, or an integer of thousands of digits
        reason = str(error).partition(":")[0]
    raise ValueError(f"not valid JSON ({reason})")


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("an object has a key twice")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_reject_duplicate_keys)
