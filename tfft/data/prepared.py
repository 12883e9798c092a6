"""What prepared sets have in common: a folder in the cache, written once, mapped into memory.

The folder's name is a hash of all that could change it: the files, the columns, the preparation,
and the version of the code that writes it. Rows stream through in chunks, so the memory needed does
not depend on the size of the data.
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
from tfft.data.sources import SEVERAL, BadRow, Row
from tfft.utils.errors import UserError
from tfft.utils.files import temporary_folder
from tfft.utils.reading import expanded, printable, read_json

LISTED = 1000  # bad rows remembered by name


@dataclass(frozen=True)
class Request:
    """What is to be prepared: a source, its columns (the label last) and how it is treated.

    `separator` stands between the labels of a row, where it may have several.
    """

    source: Source
    columns: tuple[str | int, ...]
    key: str
    on_bad_row: str
    separator: str | None = None

    def labels(self, value: str) -> list[str]:
        """The labels of a row."""
        if self.separator is None:
            return [value]
        found = value.replace(SEVERAL, self.separator).split(self.separator)
        return list(dict.fromkeys(label.strip() for label in found if label.strip()))

    def check_unchanged(self, before: str, after: str) -> None:
        """What was read must be what the cache's key is of.

        Args:
            before: `digest` of the content when the key was made.
            after: the same when all was read.

        Raises:
            UserError: a file was changed or replaced in between.
        """
        if before != after:
            raise UserError(
                f"{self.key}: {self.source.path} was changed while it was read; start again"
            )


def digest(parts: Iterable[bytes]) -> str:
    """Return a digest of byte strings, 32 hexadecimal digits."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()[:32]


class Prepared:
    """A prepared set: arrays mapped from files, nothing read until it is used.

    Attributes:
        folder: where the files lie.
        rows: how many there are.
        content: digest of the rows, wherever their files are.
        names: label names in order of appearance; `labels` are indices into it.
        bad: rows that were skipped; `bad_listed` names the first of them.
        cut: rows that lost something.
    """

    cut = 0

    def __init__(self, folder: Path):
        self.folder = folder
        kinds = {"rows": int, "content": str, "names": list, "bad": int, "bad_listed": list}
        self.meta = read_json(folder / "meta.json", **kinds)
        self.rows: int = self.meta["rows"]
        self.content: str = self.meta["content"]
        self.names: list[str] = self.meta["names"]
        self.bad: int = self.meta["bad"]
        self.bad_listed: list[str] = self.meta["bad_listed"]

    def unusable(self, request: Request, kind: str) -> UserError:
        """The error where every row was skipped, or there was none."""
        first = f" ({self.bad} bad, the first: {self.bad_listed[0]})" if self.bad else ""
        return UserError(f"{request.key}: {request.source.path} holds no usable {kind}{first}")

    def map(self, name: str, dtype: Any) -> np.ndarray:
        """The numbers of a file."""
        path = self.folder / f"{name}.bin"
        if path.stat().st_size == 0:
            return np.zeros(0, dtype)
        return np.memmap(path, dtype, "r")

    @cached_property
    def labels(self) -> np.ndarray:
        """Indices into `names`, int32: one for each row, or all rows' one after another."""
        return np.array(self.map("labels", np.int32))

    @cached_property
    def label_rows(self) -> np.ndarray:
        """The row that each of `labels` belongs to."""
        ends = np.array(self.map("label_ends", np.int64))
        return np.repeat(np.arange(self.rows), np.diff(ends, prepend=0))


class Strings:
    """Byte strings one after another in a file, and their ends in another."""

    def __init__(self, prepared: Prepared, name: str):
        self._raw, self._ends = prepared.map(name, np.uint8), prepared.map(f"{name}_ends", np.int64)

    def __getitem__(self, at: int) -> bytes:
        start = int(self._ends[at - 1]) if at else 0
        return bytes(self._raw[start : int(self._ends[at])])


class Writer:
    """Appends to the files of a prepared set.

    Args:
        folder: where they are written.
        names: of the files.
        places: those that hold where rows are from, or what follows from the others: they are no
            part of `Prepared.content`.
    """

    def __init__(
        self, folder: Path, request: Request, names: Sequence[str], places: Collection[str] = ()
    ):
        self._request = request
        names = (*names, "labels", "label_ends")
        self._files: dict[str, BinaryIO] = {
            name: open(folder / f"{name}.bin", "wb")  # noqa: SIM115 -- closed in `close`
            for name in names
        }
        self._digests = {name: hashlib.sha256() for name in names if name not in places}
        self._names: dict[str, int] = {}
        self._bad: list[str] = []
        self.rows = self.bad = self._labels = 0
        self._ends: dict[str, int] = {}

    def reject(self, row: BadRow) -> None:
        """Count a row that cannot be used, or stop there."""
        if self._request.on_bad_row == "stop":
            raise UserError(
                f"{row.place}: {row.reason} (data.on_bad_row: skip leaves such rows out)"
            )
        self.bad += row.count
        if len(self._bad) < LISTED:
            self._bad.append(printable(f"{row.place}: {row.reason}"))

    def count(self, rows: Sequence[Row]) -> None:
        """Write the labels of some rows, which are now part of the set."""
        found = [self._request.labels(row.values[-1]) for row in rows]
        ids = [[self._names.setdefault(n, len(self._names)) for n in names] for names in found]
        ends = self._labels + np.cumsum([len(i) for i in ids], dtype=np.int64)
        self.put("labels", np.array([i for own in ids for i in own], np.int32))
        self.put("label_ends", ends)
        self._labels = int(ends[-1]) if len(ends) else self._labels
        self.rows += len(rows)

    def put(self, name: str, array: np.ndarray) -> None:
        """Append numbers."""
        self._write(name, np.ascontiguousarray(array).data)

    def put_strings(self, name: str, values: Sequence[bytes]) -> None:
        """Append byte strings to a file, and where they end to another."""
        ends = self._ends.get(name, 0) + np.cumsum([len(v) for v in values], dtype=np.int64)
        self._write(name, b"".join(values))
        self.put(f"{name}_ends", ends)
        self._ends[name] = int(ends[-1]) if len(ends) else self._ends.get(name, 0)

    def _write(self, name: str, data: bytes | memoryview) -> None:
        self._files[name].write(data)
        if name in self._digests:
            self._digests[name].update(data)

    def drop(self, name: str) -> None:
        """Empty a file again."""
        self._files[name].seek(0)
        self._files[name].truncate()

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def meta(self) -> dict[str, Any]:
        """What `Prepared` reads."""
        files = [part.digest() for part in self._digests.values()]
        names = [name.encode("utf-8", "surrogatepass") for name in self._names]
        return {
            "rows": self.rows,
            "content": digest([*files, *names]),
            "bad": self.bad,
            "bad_listed": self._bad,
            "names": list(self._names),
        }


def written(folder: Path, write: Callable[[Path], dict[str, Any]]) -> None:
    """Have `write` fill a folder, unless it is there; a torn one is never read.

    It fills a temporary one, which is renamed, and returns the meta data. Several processes may
    write the same folder: the first one's is kept.
    """
    if (folder / "meta.json").is_file():
        return
    with temporary_folder(folder.parent, "preparing") as temporary:
        meta = write(temporary)
        (temporary / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        while not (folder / "meta.json").is_file():
            try:
                os.rename(temporary, folder)
            except OSError as error:
                if (folder / "meta.json").is_file():  # another process was first
                    return
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                shutil.rmtree(folder)  # some of its files were deleted


def default_cache(given: str | None) -> Path:
    """The cache's folder: as configured, else $TFFT_CACHE, else ~/.cache/tfft."""
    path = expanded(given or os.environ.get("TFFT_CACHE") or "~/.cache/tfft")
    if path.parts[0].startswith("~"):
        raise UserError(f"data.cache_dir: there is no such user: {path}")
    return path
