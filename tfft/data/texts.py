"""Texts tokenised once, into files that are mapped into memory: 20 bytes a row stay in it or so."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tfft.data import sources
from tfft.data.prepared import Prepared, Request, Strings, Writer, digest, written
from tfft.data.sources import BadRow, Row
from tfft.preprocess import TextInputs
from tfft.utils import console
from tfft.utils.reading import LONGEST_TEXT

VERSION = 4  # of this preparation: raise it when the files below change
CHUNK = 4096  # rows tokenised at once


class Tokens(Prepared):
    """A tokenised set."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.cut = self.meta["cut"]
        self.columns: int = self.meta["columns"]

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
        """Tokens of each row, int32 [rows]."""
        return np.diff(self._ends, prepend=0).astype(np.int32)

    def tokens(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and segment ids of one row."""
        stop = int(self._ends[row])
        start = int(self._ends[row - 1]) if row else 0
        return self._ids[start:stop], self._segments[start:stop]

    @cached_property
    def _texts(self) -> Strings:
        return Strings(self, "texts")

    def raw(self, row: int) -> tuple[str, ...]:
        """The raw text columns of one row."""
        at = range(row * self.columns, (row + 1) * self.columns)
        return tuple(self._texts[i].decode("utf-8") for i in at)


def prepare(request: Request, inputs: TextInputs, cache: Path) -> Tokens:
    """Take a set from the cache, or tokenise it into the cache first.

    Raises:
        UserError: a row is malformed and `on_bad_row` is stop; or no row is left.
    """
    content = digest(sources.content(request.source, request.key))
    folder = cache / "tokens" / _cache_key(request, inputs, content)

    def write(temporary: Path) -> dict[str, Any]:
        meta = _write(temporary, request, inputs)
        request.check_unchanged(content, digest(sources.content(request.source, request.key)))
        return meta

    written(folder, write)
    prepared = Tokens(folder)
    if prepared.rows == 0:
        raise prepared.unusable(request, "row")
    return prepared


def _cache_key(request: Request, inputs: TextInputs, content: str) -> str:
    settings = [VERSION, inputs.fingerprint, request.columns, request.on_bad_row]
    settings += [request.separator, request.source.model_dump(exclude={"path"})]
    return digest([json.dumps(settings).encode(), content.encode()])


def _write(folder: Path, request: Request, inputs: TextInputs) -> dict[str, Any]:
    """One pass over the rows."""
    names = ("ids", "segments", "ends", "texts", "texts_ends")
    writer = _Tokenising(folder, request, inputs, names)
    rows = sources.read(request.source, request.columns, request.key, writer.multi_label)
    began = time.monotonic()
    try:
        for chunk in _chunks(rows, writer):
            writer.append(chunk)
            speed = writer.rows / (time.monotonic() - began)
            console.progress(f"tokenising {request.key}: {writer.rows:,} rows, {speed:,.0f} rows/s")
    finally:
        writer.close()
    seconds = time.monotonic() - began
    console.progress(f"tokenised {request.key}: {writer.rows:,} rows in {seconds:.1f} s", True)
    return {**writer.meta(), "cut": writer.cut, "columns": len(request.columns) - 1}


def _chunks(rows: Iterable[Row | BadRow], writer: Writer) -> Iterator[list[Row]]:
    """The good rows, some at a time: `CHUNK` at most, and no more text than the longest may be."""
    chunk, characters = [], 0
    for row in rows:
        if isinstance(row, BadRow):
            writer.reject(row)
            continue
        characters += (own := sum(map(len, row.values)))
        if chunk and (len(chunk) == CHUNK or characters > LONGEST_TEXT):
            yield chunk
            chunk, characters = [], own
        chunk.append(row)
    if chunk:
        yield chunk


class _Tokenising(Writer):
    def __init__(self, folder: Path, request: Request, inputs: TextInputs, names: Sequence[str]):
        super().__init__(folder, request, names)
        self._inputs, self._pair = inputs, len(request.columns) == 3
        self.multi_label = request.separator is not None
        self.cut = self._tokens = 0

    def append(self, chunk: Sequence[Row]) -> None:
        """Tokenise and write some rows."""
        texts = [row.values[0] for row in chunk]
        pairs = [row.values[1] for row in chunk] if self._pair else None
        encoded = self._inputs.encode(texts, pairs)
        lengths = np.array([len(ids) for ids, _, _ in encoded], np.int64)
        ends = self._tokens + np.cumsum(lengths)
        self.put("ids", np.concatenate([np.asarray(ids, np.int32) for ids, _, _ in encoded]))
        self.put("segments", np.concatenate([np.asarray(s, np.uint8) for _, s, _ in encoded]))
        self.put("ends", ends)
        raw = [value.encode("utf-8", "surrogatepass") for row in chunk for value in row.values[:-1]]
        self.put_strings("texts", raw)
        self.cut += sum(cut for _, _, cut in encoded)
        self._tokens = int(ends[-1])
        self.count(chunk)
