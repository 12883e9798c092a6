"""Rows tokenised once, into files that are mapped into memory.

A prepared set is a folder in the cache whose name is a hash of all that could change it: the
files' bytes, the columns, the tokenizer, the length, and `VERSION` of this code. Rows stream
through in chunks, so the memory needed does not depend on the size of the file; what training
keeps in memory is 20 bytes a row or so.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tfft import log
from tfft.config import Source
from tfft.data import sources
from tfft.data.sources import BadRow, Row
from tfft.errors import UserError
from tfft.preprocess import TextInputs

VERSION = 1  # of this preparation: raise it when the files below change
CHUNK = 4096  # rows tokenised at once
LISTED = 1000  # bad rows remembered by name
_ARRAYS = {"ids": np.int32, "ends": np.int64, "segments": np.uint8, "labels": np.int32}


class Prepared:
    """A tokenised set: arrays mapped from files, nothing read until it is used.

    Attributes:
        folder: where the files lie.
        names: label names in order of appearance; `labels` are indices into it.
        cut: rows that were longer than the tokenizer's length.
        bad: rows that were skipped; `bad_listed` names the first of them.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        self.rows: int = meta["rows"]
        self.names: list[str] = meta["names"]
        self.cut: int = meta["cut"]
        self.bad: int = meta["bad"]
        self.bad_listed: list[str] = meta["bad_listed"]
        self.columns: int = meta["columns"]

    def _map(self, name: str, dtype: Any) -> np.ndarray:
        path = self.folder / f"{name}.bin"
        if path.stat().st_size == 0:
            return np.zeros(0, dtype)
        return np.memmap(path, dtype, "r")

    @cached_property
    def _ids(self) -> np.ndarray:
        return self._map("ids", np.int32)

    @cached_property
    def _segments(self) -> np.ndarray:
        return self._map("segments", np.uint8)

    @cached_property
    def _ends(self) -> np.ndarray:
        return self._map("ends", np.int64)

    @cached_property
    def labels(self) -> np.ndarray:
        """Index into `names` of each row, int32 [rows]."""
        return np.array(self._map("labels", np.int32))

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
    def _texts(self) -> tuple[np.ndarray, np.ndarray]:
        return self._map("texts", np.uint8), self._map("text_ends", np.int64)

    def texts(self, row: int) -> tuple[str, ...]:
        """The raw text columns of one row."""
        raw, ends = self._texts
        at = [row * self.columns + column for column in range(self.columns)]
        starts = [int(ends[i - 1]) if i else 0 for i in at]
        return tuple(
            bytes(raw[start : int(ends[i])]).decode("utf-8")
            for start, i in zip(starts, at, strict=True)
        )


@dataclass(frozen=True)
class Request:
    """What is to be prepared: a source, its columns (the label last) and how it is treated."""

    source: Source
    columns: tuple[str | int, ...]
    key: str
    on_bad_row: str


def prepare(request: Request, inputs: TextInputs, cache: Path) -> Prepared:
    """Take a set from the cache, or tokenise it into the cache first.

    Raises:
        UserError: a row is malformed and `on_bad_row` is stop; or no row is left.
    """
    folder = cache / "tokens" / _cache_key(request, inputs)
    if not (folder / "meta.json").is_file():
        _write(request, inputs, folder)
    prepared = Prepared(folder)
    if prepared.rows == 0:
        raise UserError(f"{request.key}: {request.source.path} holds no usable row")
    return prepared


def default_cache(given: str | None) -> Path:
    """The cache's folder: as configured, else $TFFT_CACHE, else ~/.cache/tfft."""
    return Path(given or os.environ.get("TFFT_CACHE") or "~/.cache/tfft").expanduser()


def _cache_key(request: Request, inputs: TextInputs) -> str:
    digest = hashlib.sha256()
    settings = [VERSION, inputs.fingerprint, request.columns, request.on_bad_row]
    settings.append(request.source.model_dump(exclude={"path"}))
    digest.update(json.dumps(settings).encode())
    for part in _content(request):
        digest.update(part)
    return digest.hexdigest()[:32]


def _content(request: Request) -> Iterator[bytes]:
    if request.source.source == "tfds":
        # Prepared sets do not change under a version; the name may carry one.
        yield f"{request.source.path}|{request.key}".encode()
        import tensorflow_datasets as tfds

        try:
            builder = tfds.builder(str(request.source.path), data_dir=request.source.data_dir)
        except (tfds.core.registered.DatasetNotFoundError, ValueError, OSError):
            return  # the reader says what is wrong
        yield str(builder.info.full_name).encode()
        yield str(builder.data_path).encode()
        return
    for path in sources.paths(request.source, request.key):
        with open(path, "rb") as file:
            # The name stands in the messages of bad rows.
            yield str(path).encode()
            yield hashlib.file_digest(file, "sha256").digest()


def _write(request: Request, inputs: TextInputs, folder: Path) -> None:
    """Tokenise into a temporary folder, then rename it: a torn one is never read."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".preparing-", dir=folder.parent))
    try:
        meta = _Writer(temporary, request, inputs).run()
        (temporary / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        try:
            os.rename(temporary, folder)
        except OSError:
            if not (folder / "meta.json").is_file():  # else another process was first
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _Writer:
    """One pass over the rows, appending to the files of a prepared set."""

    def __init__(self, folder: Path, request: Request, inputs: TextInputs):
        self._request, self._inputs = request, inputs
        names = (*_ARRAYS, "texts", "text_ends")
        self._files = {name: open(folder / f"{name}.bin", "wb") for name in names}  # noqa: SIM115
        self._names: dict[str, int] = {}
        self._bad: list[str] = []
        self._count = {"rows": 0, "cut": 0, "bad": 0, "tokens": 0, "bytes": 0}

    def run(self) -> dict[str, Any]:
        """Write everything; returns the meta data."""
        began, chunk = time.monotonic(), []
        request = self._request
        try:
            for row in sources.read(request.source, request.columns, request.key):
                if isinstance(row, BadRow):
                    self._reject(row)
                    continue
                chunk.append(row)
                if len(chunk) == CHUNK:
                    self._append(chunk)
                    chunk = []
                    speed = self._count["rows"] / (time.monotonic() - began)
                    log.progress(
                        f"tokenising {request.key}: {self._count['rows']:,} rows, "
                        f"{speed:,.0f} rows/s"
                    )
            if chunk:
                self._append(chunk)
        finally:
            for file in self._files.values():
                file.close()
        count = self._count
        seconds = time.monotonic() - began
        log.progress(f"tokenised {request.key}: {count['rows']:,} rows in {seconds:.1f} s", True)
        return {
            "rows": count["rows"],
            "cut": count["cut"],
            "bad": count["bad"],
            "bad_listed": self._bad,
            "names": list(self._names),
            "columns": len(request.columns) - 1,
        }

    def _reject(self, row: BadRow) -> None:
        if self._request.on_bad_row == "stop":
            raise UserError(
                f"{row.place}: {row.reason} (data.on_bad_row: skip leaves such rows out)"
            )
        self._count["bad"] += 1
        if len(self._bad) < LISTED:
            self._bad.append(f"{row.place}: {row.reason}")

    def _append(self, chunk: Sequence[Row]) -> None:
        texts = [row.values[0] for row in chunk]
        pairs = [row.values[1] for row in chunk] if len(self._request.columns) == 3 else None
        encoded = self._inputs.encode(texts, pairs)
        count = self._count
        lengths = np.array([len(ids) for ids, _, _ in encoded], np.int64)
        ends = count["tokens"] + np.cumsum(lengths)
        raw = [value.encode("utf-8", "surrogatepass") for row in chunk for value in row.values[:-1]]
        text_ends = count["bytes"] + np.cumsum([len(text) for text in raw], dtype=np.int64)
        labels = [self._names.setdefault(row.values[-1], len(self._names)) for row in chunk]
        self._put("ids", np.concatenate([np.asarray(ids, np.int32) for ids, _, _ in encoded]))
        self._put("segments", np.concatenate([np.asarray(s, np.uint8) for _, s, _ in encoded]))
        self._put("ends", ends)
        self._put("labels", np.array(labels, np.int32))
        self._put("text_ends", text_ends)
        self._files["texts"].write(b"".join(raw))
        count["rows"] += len(chunk)
        count["cut"] += sum(cut for _, _, cut in encoded)
        count["tokens"], count["bytes"] = int(ends[-1]), int(text_ends[-1])

    def _put(self, name: str, array: np.ndarray) -> None:
        self._files[name].write(array.tobytes())
