"""Prepared sets: a folder in the cache, written once, mapped into memory.

The folder's name is a hash of all that its content depends on: the files, the columns, the
preparation, and the version of the code that writes it. Rows stream through in chunks, so the
memory needed does not depend on the size of the data.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tfft.config import Source
from tfft.data.sources import BadRow, Row
from tfft.data.targets import CLASS, Targets
from tfft.utils.errors import UserError
from tfft.utils.files import temporary_folder
from tfft.utils.reading import expanded, printable, read_json

MAX_LISTED = 1000  # bad rows whose reasons are stored


@dataclass(frozen=True)
class Request:
    """A source to prepare and how to treat it.

    Attributes:
        source: the files.
        columns: names or indices of the columns to read, the target columns last.
        key: the source's key in the config, for errors.
        on_bad_row: `stop` or `skip`.
        targets: what the target columns hold.
    """

    source: Source
    columns: tuple[str | int, ...]
    key: str
    on_bad_row: str
    targets: Targets = CLASS

    @property
    def image_index(self) -> int:
        """Index of the image among the columns: the last one before the targets."""
        return len(self.columns) - self.targets.width - 1

    @property
    def cache_key(self) -> list[Any]:
        """Plain data about the columns and rows that a prepared set depends on."""
        return [self.columns, self.on_bad_row, self.targets.settings]

    def check_unchanged(self, expected: str, actual: str) -> None:
        """Check that the rows that were read are those that the cache key describes.

        Args:
            expected: digest of the content when the key was computed.
            actual: digest of the content after all rows were read.

        Raises:
            UserError: a file was changed or replaced in between.
        """
        if expected != actual:
            raise UserError(
                f"{self.key}: {self.source.path} was changed while it was read; start again"
            )


def digest(parts: Iterable[bytes]) -> str:
    """Return a digest of a sequence of byte strings, 32 hexadecimal digits."""
    result = hashlib.sha256()
    for part in parts:
        # Hash each part separately, so that moving a byte to the next part changes the digest.
        result.update(hashlib.sha256(part).digest())
    return result.hexdigest()[:32]


class Prepared:
    """A prepared set: arrays mapped from files, so that nothing is read before it is used.

    Attributes:
        folder: holds the files.
        rows: number of rows.
        content: digest of the rows, independent of where their files are.
        names: label names in order of appearance; `labels` are indices into it.
        bad: number of rows that were skipped.
        bad_listed: the first of them, as `place: reason`.
        cut: number of rows that were truncated.
        window_ends: one after the last window of each row, int64 [rows]; None: each row is one
            example.
    """

    cut = 0
    window_ends: np.ndarray | None = None

    def __init__(self, folder: Path):
        self.folder = folder
        types = {"rows": int, "content": str, "names": list, "bad": int, "bad_listed": list}
        self.meta = read_json(folder / "meta.json", **types)
        self.rows: int = self.meta["rows"]
        self.content: str = self.meta["content"]
        self.names: list[str] = self.meta["names"]
        self.bad: int = self.meta["bad"]
        self.bad_listed: list[str] = self.meta["bad_listed"]

    def no_rows_error(self, request: Request, kind: str) -> UserError:
        """Return the error for a set without rows: all were skipped, or there were none."""
        first = f" ({self.bad} bad, the first: {self.bad_listed[0]})" if self.bad else ""
        return UserError(f"{request.key}: {request.source.path} holds no usable {kind}{first}")

    def map(self, name: str, dtype: Any) -> np.ndarray:
        """Return the numbers in a file as a memory-mapped array."""
        path = self.folder / f"{name}.bin"
        # An empty file cannot be mapped.
        if path.stat().st_size == 0:
            return np.zeros(0, dtype)
        return np.memmap(path, dtype, "r")

    @cached_property
    def labels(self) -> np.ndarray:
        """Indices into `names`, int32: one for each row, or those of all rows concatenated."""
        return np.array(self.map("labels", np.int32))

    @cached_property
    def label_rows(self) -> np.ndarray:
        """Row that each of `labels` belongs to, int64."""
        ends = np.array(self.map("label_ends", np.int64))
        return np.repeat(np.arange(self.rows), np.diff(ends, prepend=0))


class ByteStrings:
    """Byte strings concatenated in a file, with their end offsets in another."""

    def __init__(self, prepared: Prepared, name: str):
        self._raw, self._ends = prepared.map(name, np.uint8), prepared.map(f"{name}_ends", np.int64)

    def __getitem__(self, index: int) -> bytes:
        start = int(self._ends[index - 1]) if index else 0
        return bytes(self._raw[start : int(self._ends[index])])


class Writer:
    """Appends rows to the files of a prepared set.

    Args:
        folder: receives the files.
        request: how to treat the rows.
        names: of the files.
        derived: files with the places of rows, or with values that follow from other files; they do
            not count for `Prepared.content`.
    """

    def __init__(
        self, folder: Path, request: Request, names: Sequence[str], derived: Collection[str] = ()
    ):
        self._request = request
        names = (*names, *request.targets.files)
        self._files: dict[str, BinaryIO] = {
            name: open(folder / f"{name}.bin", "wb")  # noqa: SIM115 -- closed in `close`
            for name in names
        }
        self._digests = {name: hashlib.sha256() for name in names if name not in derived}
        self._names: dict[str, int] = {}
        self._bad_listed: list[str] = []
        self.rows = self.bad = 0
        self._ends: dict[str, int] = {}

    def reject(self, row: BadRow) -> None:
        """Count a row that cannot be used.

        Raises:
            UserError: `on_bad_row` is stop.
        """
        if self._request.on_bad_row == "stop":
            raise UserError(
                f"{row.place}: {row.reason} (set data.on_bad_row: skip to leave such rows out)"
            )
        self.bad += row.count
        if len(self._bad_listed) < MAX_LISTED:
            self._bad_listed.append(printable(f"{row.place}: {row.reason}"))

    def add_rows(self, rows: Sequence[Row]) -> None:
        """Write the targets of rows whose other values are written already, and count the rows."""
        self._request.targets.write(self, rows)
        self.rows += len(rows)

    def name_id(self, name: str) -> int:
        """Return the id of a label: a new one gets the next id, in order of appearance."""
        return self._names.setdefault(name, len(self._names))

    def put_ragged(self, name: str, rows: Sequence[np.ndarray]) -> None:
        """Append an array for each row to the file `NAMEs`, and their ends to `NAME_ends`."""
        if len(rows):
            self.put(f"{name}s", np.concatenate(rows))
            self.put_ends(name, [len(row) for row in rows])

    def put_ends(self, name: str, lengths: Sequence[int] | np.ndarray) -> None:
        """Append the ends of arrays of these lengths, which follow each other, to `NAME_ends`."""
        ends = self._ends.get(name, 0) + np.cumsum(lengths, dtype=np.int64)
        self.put(f"{name}_ends", ends)
        self._ends[name] = int(ends[-1]) if len(ends) else self._ends.get(name, 0)

    def put(self, name: str, array: np.ndarray) -> None:
        """Append an array of numbers to a file."""
        self._write(name, np.ascontiguousarray(array).data)  # `.data` needs contiguous memory

    def put_strings(self, name: str, values: Sequence[bytes]) -> None:
        """Append byte strings to a file, and their end offsets to another."""
        ends = self._ends.get(name, 0) + np.cumsum([len(v) for v in values], dtype=np.int64)
        self._write(name, b"".join(values))
        self.put(f"{name}_ends", ends)
        self._ends[name] = int(ends[-1]) if len(ends) else self._ends.get(name, 0)

    def _write(self, name: str, data: bytes | memoryview) -> None:
        self._files[name].write(data)
        if name in self._digests:
            self._digests[name].update(data)

    def drop(self, name: str) -> None:
        """Truncate a file to nothing."""
        self._files[name].seek(0)
        self._files[name].truncate()

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()

    def meta(self) -> dict[str, Any]:
        """Return the meta data that `Prepared` reads."""
        file_digests = [part.digest() for part in self._digests.values()]
        encoded_names = [name.encode("utf-8", "surrogatepass") for name in self._names]
        return {
            "rows": self.rows,
            "content": digest([*file_digests, *encoded_names]),
            "bad": self.bad,
            "bad_listed": self._bad_listed,
            "names": list(self._names),
        }


def write_once(folder: Path, write: Callable[[Path], dict[str, Any]]) -> None:
    """Fill a folder by calling `write`, unless it exists.

    `write` fills a temporary folder, which is then renamed, so that a partly written folder is
    never read. Several processes may write the same folder: the first one's is used.

    Args:
        folder: the folder to fill.
        write: takes a folder to write to and returns the meta data.
    """
    # meta.json exists in complete folders alone.
    if (folder / "meta.json").is_file():
        return
    with temporary_folder(folder.parent, "preparing") as temporary:
        meta = write(temporary)
        (temporary / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        # Another process may fill or delete the folder at any point of this loop.
        while not (folder / "meta.json").is_file():
            try:
                os.rename(temporary, folder)
            except OSError as error:
                if (folder / "meta.json").is_file():  # another process renamed its folder first
                    return
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                shutil.rmtree(folder)  # some of its files were deleted


def default_cache(configured: str | None) -> Path:
    """Return the folder of the cache: as configured, else $TFFT_CACHE, else ~/.cache/tfft.

    Raises:
        UserError: the path begins with the home of a user who does not exist.
    """
    path = expanded(configured or os.environ.get("TFFT_CACHE") or "~/.cache/tfft")
    if path.parts[0].startswith("~"):
        raise UserError(f"data.cache_dir: no such user: {path}")
    return path
