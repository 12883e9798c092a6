"""Tokenise texts once, into memory-mapped files; about 20 bytes per row stay in memory."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tfft.data import sources
from tfft.data.prepared import ByteStrings, Prepared, Request, Writer, digest, write_once
from tfft.data.sources import BadRow, Row
from tfft.preprocess import TextInputs
from tfft.utils import console
from tfft.utils.ragged import Ragged
from tfft.utils.reading import LONGEST_TEXT

VERSION = 6  # of the format: raise it when the files written below change
CHUNK_SIZE = 4096  # rows tokenised in one call, at most


class PreparedTexts(Prepared):
    """A tokenised set.

    Attributes:
        columns: number of text columns.
    """

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.cut = self.meta["cut"]
        self.columns: int = self.meta["columns"]
        if self.meta["windows"]:
            self.window_ends = np.array(self.map("window_ends", np.int64))

    @cached_property
    def _ids(self) -> np.ndarray:
        return self.map("ids", np.int32)

    @cached_property
    def _segments(self) -> np.ndarray:
        return self.map("segments", np.uint8)

    @cached_property
    def _ends(self) -> np.ndarray:
        return self.map("ends", np.int64)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each row, or of each window of each row, int32."""
        return np.diff(self._ends, prepend=0).astype(np.int32)

    def tokens(self, example: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the token ids and segment ids of a row, or of a window."""
        stop = int(self._ends[example])
        start = int(self._ends[example - 1]) if example else 0
        return self._ids[start:stop], self._segments[start:stop]

    @cached_property
    def word_starts(self) -> Ragged:
        """The byte at which each word of each row begins, int32; for tags of words."""
        ends = np.array(self.map("label_ends", np.int64))
        return Ragged(np.array(self.map("word_starts", np.int32)), ends)

    def of_tokens(self, name: str) -> Ragged:
        """Return an int32 of each token of each window, from a file of the targets."""
        return Ragged(self.map(name, np.int32), np.array(self._ends))

    @cached_property
    def word_tokens(self) -> Ragged:
        """The first token of each word of each window, int32; see `words.tokens_of_words`."""
        ends = np.array(self.map("word_ends", np.int64))
        return Ragged(self.map("word_tokens", np.int32), ends)

    @cached_property
    def _texts(self) -> ByteStrings:
        return ByteStrings(self, "texts")

    def texts(self, row: int) -> tuple[str, ...]:
        """Return the texts of a row, one per column."""
        indices = range(row * self.columns, (row + 1) * self.columns)
        return tuple(self._texts[i].decode("utf-8") for i in indices)

    def raw_row(self, row: int) -> tuple[Any, ...]:
        """Return the texts of a row."""
        return self.texts(row)


def prepare(request: Request, inputs: TextInputs, cache: Path) -> PreparedTexts:
    """Load a set from the cache, or tokenise it into the cache first.

    Raises:
        UserError: a row is malformed and `on_bad_row` is stop, or no row is usable.
    """
    content = digest(sources.content(request.source, request.key))
    folder = cache / "tokens" / _cache_key(request, inputs, content)

    def write(temporary: Path) -> dict[str, Any]:
        meta = _write(temporary, request, inputs)
        request.check_unchanged(content, digest(sources.content(request.source, request.key)))
        return meta

    write_once(folder, write)
    prepared = PreparedTexts(folder)
    if prepared.rows == 0:
        raise prepared.no_rows_error(request, "row")
    return prepared


def _cache_key(request: Request, inputs: TextInputs, content: str) -> str:
    # Without the path, which `content` covers.
    source = request.source.model_dump(exclude={"path"})
    settings = [VERSION, inputs.fingerprint, *request.cache_key, source]
    return digest([json.dumps(settings).encode(), content.encode()])


def _write(folder: Path, request: Request, inputs: TextInputs) -> dict[str, Any]:
    """Tokenise all rows in one pass and write the files of the set; return its meta data."""
    writer = Writer(folder, request, TokenFiles.names(request))
    tokens = TokenFiles(writer, request, inputs)
    rows = sources.read(request.source, request.columns, request.key, request.targets)
    start_time = time.monotonic()
    try:
        for chunk in _chunks(rows, writer):
            tokens.append(chunk)
            writer.add_rows(chunk)
            speed = writer.rows / (time.monotonic() - start_time)
            console.progress(f"tokenising {request.key}: {writer.rows:,} rows, {speed:,.0f} rows/s")
    finally:
        writer.close()
    seconds = time.monotonic() - start_time
    console.progress(f"tokenised {request.key}: {writer.rows:,} rows in {seconds:.1f} s", True)
    return {**writer.meta(), **tokens.meta()}


def _chunks(rows: Iterable[Row | BadRow], writer: Writer) -> Iterator[list[Row]]:
    """Yield the good rows in chunks, and pass the others to `writer.reject`.

    A chunk of several rows has at most `CHUNK_SIZE` rows and `LONGEST_TEXT` characters, which
    bounds the memory of the tokenizer.
    """
    chunk, characters = [], 0
    for row in rows:
        if isinstance(row, BadRow):
            writer.reject(row)
            continue
        characters += (row_characters := sum(map(len, row.values[:-1])))
        if chunk and (len(chunk) == CHUNK_SIZE or characters > LONGEST_TEXT):
            yield chunk
            chunk, characters = [], row_characters
        chunk.append(row)
    if chunk:
        yield chunk


class TokenFiles:
    """The files of a prepared set that hold texts and their tokens.

    Args:
        writer: writes the files, those of `names` among them.
        request: how to treat the rows.
        inputs: the tokenizer.
    """

    def __init__(self, writer: Writer, request: Request, inputs: TextInputs):
        self._writer, self._targets, self._tokenizer = writer, request.targets, inputs
        self._columns, self._cut, self._num_tokens = len(inputs.columns), 0, 0

    @staticmethod
    def names(request: Request) -> list[str]:
        """Return the names of the files."""
        names = ["ids", "segments", "ends", "texts", "texts_ends"]
        return [*names, "window_ends"] if request.targets.of_windows else names

    def append(self, chunk: Sequence[Row]) -> None:
        """Tokenise some rows, whose first values are texts, and write their tokens and texts."""
        columns = [[row.values[i] for row in chunk] for i in range(self._columns)]
        if self._targets.of_windows:
            rows = self._tokenizer.windows_of(*columns)
            for row, windows in zip(chunk, rows, strict=True):
                self._targets.write_windows(self._writer, row, windows)
            self._writer.put_ends("window", list(map(len, rows)))
            examples = [window for windows in rows for window in windows]
            encoded = [(window.ids, window.segments, False) for window in examples]
            self._cut += sum(windows[-1].truncated for windows in rows)
        else:
            encoded = self._tokenizer.encode(*columns)
        lengths = np.array([len(ids) for ids, _, _ in encoded], np.int64)
        ends = self._num_tokens + np.cumsum(lengths)
        put = self._writer.put
        put("ids", np.concatenate([np.asarray(ids, np.int32) for ids, _, _ in encoded]))
        put("segments", np.concatenate([np.asarray(s, np.uint8) for _, s, _ in encoded]))
        put("ends", ends)
        raw_texts = [
            value.encode("utf-8", "surrogatepass")
            for row in chunk
            for value in row.values[: self._columns]
        ]
        self._writer.put_strings("texts", raw_texts)
        self._cut += sum(cut for _, _, cut in encoded)
        self._num_tokens = int(ends[-1])

    def meta(self) -> dict[str, Any]:
        """Return the meta data that `PreparedTexts` reads."""
        return {"cut": self._cut, "columns": self._columns, "windows": self._targets.of_windows}
