"""Readers of csv, tsv and jsonl: streaming, with the line that each row came from."""

import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfft.config import Source
from tfft.data.records import BadRow, Columns, Row, by_name, check_positions, from_mapping, paths
from tfft.utils import console
from tfft.utils.errors import UserError
from tfft.utils.reading import LONGEST_LINE, open_regular

_MANY_LINES: float = 50  # of a row: texts rarely have them, and an unclosed quote soon does


def delimited(source: Source, columns: Columns, key: str) -> Iterator[Row | BadRow]:
    """Rows of csv and tsv files."""
    for path in paths(source, key):
        yield from _delimited_file(path, source, columns)


def _delimited_file(path: Path, source: Source, columns: Columns) -> Iterator[Row | BadRow]:
    quoting = source.source == "csv" if source.quoting is None else source.quoting
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(
        _lines(path, source.encoding),
        delimiter="," if source.source == "csv" else "\t",
        quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE,
        strict=True,
    )
    indices, width, many = None, None, _MANY_LINES
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
            continue  # a blank line separates nothing and means nothing
        if indices is None:
            indices, width = by_name(cells, columns, f"{path}:{start}"), len(cells)
            continue
        if width is None:
            width = len(cells)
            check_positions(indices, width, f"{path}:{start}")
        if len(cells) != width:
            reason = f"{len(cells)} columns where {width} are expected"
            reason += "; fix the separators or the quotes"
            yield _bad_row(path, start, reader.line_num, reason)
            continue
        if reader.line_num - start >= many:
            many = math.inf  # say it once
            console.log(
                f"data: {path}: lines {start} to {reader.line_num} are read as one row, by their "
                "quotes; is one not closed?"
            )
        yield Row(f"{path}:{start}", tuple(cells[i] for i in indices))
    if indices is None:
        raise UserError(f"{path}: empty; needs a header line with {', '.join(map(str, columns))}")


def _bad_row(path: Path, first: int, last: int, reason: str) -> BadRow:
    """Return a row that cannot be used: one line, or all that an unclosed quote runs over."""
    count = max(1, last - first + 1)
    if count > 1:
        reason += f". Their quotes make one row of the {count} lines {first} to {last}"
    return BadRow(f"{path}:{first}", reason, count)


def _lines(path: Path, encoding: str) -> Iterator[str]:
    """Decoded lines of a file; a byte-order mark is dropped."""
    plain = encoding.lower().replace("_", "-") in ("utf-8", "utf8")
    number = 0
    with open_regular(path) as raw:
        try:
            "".encode(encoding)
            file = io.TextIOWrapper(raw, "utf-8-sig" if plain else encoding, newline="")
        except (LookupError, ValueError):
            raise UserError(
                f"data: unknown encoding {encoding!r}; try utf-8, latin-1 or cp1252"
            ) from None
        while True:
            try:
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
    """Where a file is not in its encoding. `lines` were read before."""
    if not isinstance(error, UnicodeDecodeError):  # of utf-16 without a byte-order mark
        return f"{path}: not {encoding}: {error}; declare the file's encoding, e.g. utf-16-le"
    # The codec reads ahead by blocks: the line at fault is found by its bytes.
    number, byte = _first_undecodable(path, encoding, lines)
    return (
        f"{path}:{number}: byte 0x{byte:02x} is not {error.encoding}; declare the file's "
        "encoding, e.g. encoding: latin-1"
    )


def _first_undecodable(path: Path, encoding: str, at_least: int) -> tuple[int, int]:
    with open_regular(path) as file:
        for number, raw in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
            try:
                raw.decode(encoding)
            except UnicodeError as error:
                return number, raw[getattr(error, "start", 0)]
    return at_least + 1, 0


def json_lines(source: Source, columns: Columns, key: str) -> Iterator[Row | BadRow]:
    """Rows of jsonl files."""
    if isinstance(columns[0], int):
        raise UserError(f"{key}: columns of jsonl are named, not numbered. Received: {columns[0]}")
    for path in paths(source, key):
        for number, line in enumerate(_lines(path, source.encoding), 1):
            if line.strip():
                yield _json_row(line, columns, f"{path}:{number}")


def _json_row(line: str, columns: Columns, place: str) -> Row | BadRow:
    try:
        value = json_object(line)
    except ValueError as error:
        return BadRow(place, f"{error}; one object a line is expected")
    if not isinstance(value, dict):
        return BadRow(place, f"holds {type(value).__name__}, not an object")
    return from_mapping(value, columns, place)


def json_object(line: str) -> Any:
    """Read a line of JSON.

    Raises:
        ValueError: it is not JSON, or an object in it has a key twice.
    """
    try:
        return _DECODER.decode(line)
    except json.JSONDecodeError as error:
        reason = error.msg
    except RecursionError:
        reason = "nested too deep"
    except ValueError as error:  # a key that is there twice; an integer of thousands of digits
        reason = str(error).partition(":")[0]
    raise ValueError(f"not valid JSON ({reason})")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("an object has a key twice")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_no_key_twice)
