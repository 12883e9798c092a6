"""Texts tokenised once, into files that are mapped into memory: 20 bytes a row stay in it or so."""

import hashlib
import json
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tfft import log
from tfft.data import sources
from tfft.data.prepared import Prepared, Request, Strings, Writer, written
from tfft.data.sources import BadRow, Row
from tfft.errors import UserError
from tfft.preprocess import TextInputs

VERSION = 3  # of this preparation: raise it when the files below change
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
    content = list(sources.content(request.source, request.key))
    folder = cache / "tokens" / _cache_key(request, inputs, content)

    def write(temporary: Path) -> dict[str, Any]:
        meta = _write(temporary, request, inputs)
        request.check_unchanged(content, sources.content(request.source, request.key))
        return meta

    written(folder, write)
    prepared = Tokens(folder)
    if prepared.rows == 0:
        raise UserError(f"{request.key}: {request.source.path} holds no usable row")
    return prepared


def _cache_key(request: Request, inputs: TextInputs, content: list[bytes]) -> str:
    digest = hashlib.sha256()
    settings = [VERSION, inputs.fingerprint, request.columns, request.on_bad_row]
    settings += [request.separator, request.source.model_dump(exclude={"path"})]
    digest.update(json.dumps(settings).encode())
    for part in content:
        digest.update(part)
    return digest.hexdigest()[:32]


def _write(folder: Path, request: Request, inputs: TextInputs) -> dict[str, Any]:
    """One pass over the rows."""
    names = ("ids", "segments", "ends", "texts", "texts_ends")
    writer = _Tokenising(folder, request, inputs, names)
    began, chunk = time.monotonic(), []
    try:
        for row in sources.read(request.source, request.columns, request.key, writer.several):
            if isinstance(row, BadRow):
                writer.reject(row)
                continue
            chunk.append(row)
            if len(chunk) == CHUNK:
                writer.append(chunk)
                chunk = []
                speed = writer.rows / (time.monotonic() - began)
                log.progress(f"tokenising {request.key}: {writer.rows:,} rows, {speed:,.0f} rows/s")
        if chunk:
            writer.append(chunk)
    finally:
        writer.close()
    seconds = time.monotonic() - began
    log.progress(f"tokenised {request.key}: {writer.rows:,} rows in {seconds:.1f} s", True)
    return {**writer.meta(), "cut": writer.cut, "columns": len(request.columns) - 1}


class _Tokenising(Writer):
    def __init__(self, folder: Path, request: Request, inputs: TextInputs, names: Sequence[str]):
        super().__init__(folder, request, names)
        self._inputs, self._pair = inputs, len(request.columns) == 3
        self.several = request.separator is not None
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
