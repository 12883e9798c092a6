"""Reader of CoNLL column files: one token a line with its columns, a blank line after a sentence.

The format of the shared tasks (Tjong Kim Sang & De Meulder 2003, "Introduction to the CoNLL-2003
Shared Task"), as data sets of named entities still use it. A sentence is a row: its tokens and
its tags. Like all readers, this one streams, and yields a `BadRow` for what it cannot read.

Columns are separated by tabs if the first token line of the file has a tab, else by spaces. Other
white space, such as a no-break space, is part of a token.

Lines without a token:

- A blank line, also one of spaces and tabs, ends a sentence, and so does `-DOCSTART-`.
- A comment of CoNLL-U, `# sent_id = 1`, is skipped. `#` is a token as well, so a line counts as a
  comment only in front of the first token of a sentence, and only if it begins with `# ` and its
  columns are not those of a token: the file is separated by tabs, the number of columns differs,
  or the comment has the form `# name = value`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tfft.config import Source
from tfft.data.records import BadRow, Columns, Row, source_files
from tfft.data.text_files import decoded_lines
from tfft.utils.errors import UserError
from tfft.utils.reading import LONGEST_LINE, LONGEST_TEXT, is_unicode

TOKEN_AND_TAG = (0, -1)  # columns: the token is the first, the tag the last
LONGEST_SENTENCE = 50_000  # lines; without blank lines, a file would be read as one sentence
_BLANK = " \t\r\n"
_DOCUMENT_MARK = "-DOCSTART-"
_NAMED_COMMENT = re.compile(r"# [^=]+ = ")

_Block = list[tuple[int, str]]  # (line number, line) of each line between two blank ones


@dataclass(frozen=True)
class _Layout:
    """How the lines of a file are divided.

    Attributes:
        separator: a tab or a space.
        width: number of columns.
        indices: positions of the requested columns, from 0 to width - 1.
    """

    separator: str
    width: int
    indices: tuple[int, ...]


def conll(source: Source, columns: Columns, key: str) -> Iterator[Row | BadRow]:
    """Yield the sentences of CoNLL files.

    Args:
        source: the files and their encoding.
        columns: numbers of the columns; a negative one counts from the last. `TOKEN_AND_TAG`, or
            (0,) for tokens without tags.
        key: the source's key in the config, for errors.

    Yields:
        A row for each sentence, with the place of its first token, `FILE:LINE`. Its values are one
        tuple of strings for each column, all as long as the sentence.

    Raises:
        UserError: as `sentences`, or a column is named instead of numbered.
    """
    for column in columns:
        if not isinstance(column, int):
            raise UserError(
                f"{key}: columns of CoNLL files are numbered, not named: 0 is the first and -1 the "
                f"last. Received: {column!r}"
            )
    for path in source_files(source, key):
        yield from sentences(path, [int(c) for c in columns], source.encoding)


def width(source: Source, key: str) -> int:
    """Return the number of columns of CoNLL files, that of the first token line.

    Args:
        source: the files; the first one is read.
        key: the source's key in the config, for errors.

    Raises:
        UserError: the file cannot be decoded or is empty.
    """
    return _layout(source_files(source, key)[0], (), source.encoding).width


def sentences(
    path: Path,
    columns: Sequence[int] = TOKEN_AND_TAG,
    encoding: str = "utf-8",
    longest: int = LONGEST_SENTENCE,
) -> Iterator[Row | BadRow]:
    """Yield the sentences of a CoNLL file; see `conll`.

    Args:
        path: of the file.
        columns: numbers of the columns.
        encoding: of the file.
        longest: largest number of lines of a sentence.

    Raises:
        UserError: the file cannot be decoded, is empty, or lacks one of the columns.
    """
    layout = _layout(path, columns, encoding)
    for block, is_cut in _blocks(path, encoding, longest):
        if is_cut:
            reason = f"more than {longest:,} lines or {LONGEST_LINE:,} characters of one sentence"
            yield BadRow(f"{path}:{block[0][0]}", f"{reason}; put a blank line after each sentence")
            continue
        row = _sentence(path, block, layout)
        if row is not None:
            yield row


def _layout(path: Path, columns: Sequence[int], encoding: str) -> _Layout:
    """Return the layout of the first token line of a file.

    Raises:
        UserError: there is no token line, or it lacks one of the columns.
    """
    number, line = _first_token_line(path, encoding)
    separator = "\t" if "\t" in line else " "
    width = len(_cells(line, separator))
    for column in columns:
        if not -width <= column < width:
            raise UserError(
                f"{path}:{number}: no column {column}: the line has {width} (0 to {width - 1})"
            )
    indices = tuple(column % width for column in columns)
    if len(set(indices)) < len(indices):
        names = " and ".join(map(str, columns))
        raise UserError(
            f"{path}:{number}: columns {names} are the same: a token and its tag must be separated "
            f"by a tab or a space. Received: {line.strip()[:80]!r}"
        )
    return _Layout(separator, width, indices)


def _first_token_line(path: Path, encoding: str) -> tuple[int, str]:
    """Return the first line that holds a token, without its line end, and its number."""
    number_sign = None
    for number, line in enumerate(decoded_lines(path, encoding), 1):
        if not line.strip(_BLANK) or line.startswith(_DOCUMENT_MARK):
            continue
        if not line.startswith("# "):
            return number, line.rstrip("\r\n")
        # A comment, or `#` as a token: it counts only if no other line has one.
        number_sign = number_sign or (number, line.rstrip("\r\n"))
    if number_sign is None:
        raise UserError(f"{path}: empty; needs at least one sentence")
    return number_sign


def _blocks(path: Path, encoding: str, longest: int) -> Iterator[tuple[_Block, bool]]:
    """Yield the lines between blank lines or document marks, and whether more of them were cut."""
    block: _Block = []
    size, is_cut = 0, False
    # A blank line after the last one ends the last sentence, also in a file without a line end.
    for number, line in enumerate(chain(decoded_lines(path, encoding), ("",)), 1):
        if not line.strip(_BLANK) or line.startswith(_DOCUMENT_MARK):
            if block:
                yield block, is_cut
            block, size, is_cut = [], 0, False
            continue
        size += len(line)
        is_cut = is_cut or len(block) >= longest or (bool(block) and size > LONGEST_LINE)
        if not is_cut:
            block.append((number, line))


def _sentence(path: Path, block: _Block, layout: _Layout) -> Row | BadRow | None:
    """Return the row of a sentence; None if there are only comments."""
    first, rows, size = 0, [], 0
    for number, line in block:
        cells = _cells(line, layout.separator)
        if not rows and _is_comment(line, len(cells), layout):
            continue
        place = f"{path}:{number}"
        if len(cells) != layout.width:
            reason = f"{_columns(len(cells))} where {layout.width} are expected"
            return BadRow(place, f"{reason}; fix the separators. Received: {line.strip()[:80]!r}")
        row = tuple(cells[index] for index in layout.indices)
        for index, cell in zip(layout.indices, row, strict=True):
            if not cell:
                return BadRow(place, f"column {index} is empty; fill it or drop the sentence")
            if not is_unicode(cell):
                reason = "holds a lone surrogate: it was encoded or truncated wrongly"
                return BadRow(place, f"column {index} {reason}")
        first = first or number
        size += len(row[0]) + 1
        if size > LONGEST_TEXT:
            reason = f"the sentence of line {first} has more than {LONGEST_TEXT:,} characters"
            return BadRow(place, f"{reason}; no more are read")
        rows.append(row)
    return Row(f"{path}:{first}", tuple(zip(*rows, strict=True))) if rows else None


def _is_comment(line: str, width: int, layout: _Layout) -> bool:
    """Return whether a line in front of a sentence is a comment; see the module.

    Args:
        line: the line.
        width: its number of columns.
        layout: of the token lines.
    """
    if not line.startswith("# "):
        return False
    # Separated by tabs, `# ` would begin a token with a space in it, which no data set has.
    return layout.separator == "\t" or width != layout.width or bool(_NAMED_COMMENT.match(line))


def _cells(line: str, separator: str) -> list[str]:
    """Return the cells of a line.

    Runs of spaces separate once; an empty cell between tabs remains.
    """
    # No `split()`: it would also divide tokens at a no-break space or a line separator.
    if separator == "\t":
        return [cell.strip(" ") for cell in line.rstrip("\r\n").split("\t")]
    return [cell for cell in line.strip(_BLANK).split(" ") if cell]


def _columns(count: int) -> str:
    return "1 column" if count == 1 else f"{count} columns"
