"""Pictures looked at once: broken ones found, sizes and hashes noted, pixels kept where that pays.

Each file is decoded by the ops that will be served. What is kept of it in the cache is small; the
files stay where they are, but for those of a TFDS set or an npz file, whose bytes are copied.
"""

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tfft.data import sources
from tfft.data.prepared import Prepared, Request, Strings, Writer, digest, written
from tfft.data.sources import BadRow, Row
from tfft.preprocess import ImageInputs
from tfft.preprocess.image import read as read_picture
from tfft.utils import console
from tfft.utils.errors import UserError

VERSION = 3  # of this preparation: raise it when the files below change
COPIED = ("tfds", "npz")  # sources whose rows hold the pictures themselves
CHUNK = 256  # pictures decoded at once
KEPT = 4 * 2**30  # bytes of pixels of a set that `cache_images: auto` keeps at most
SHARE = 0.25  # of the free disk that it takes at most


class Pictures(Prepared):
    """A set of pictures that were looked at.

    Attributes:
        pixels: uint8 [rows, H, W, 3], where they were kept.
        size: their height and width.
    """

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.size: tuple[int, int] = tuple(self.meta["size"])

    @cached_property
    def pixels(self) -> np.ndarray | None:
        """uint8 [rows, H, W, 3], or None where they were not kept."""
        if not self.meta["pixels"]:
            return None
        return self.map("pixels", np.uint8).reshape(self.rows, *self.size, 3)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Height and width of each file's picture, int32 [rows, 2]."""
        return np.array(self.map("sizes", np.int32)).reshape(-1, 2)

    @cached_property
    def hashes(self) -> np.ndarray:
        """Difference hashes, uint8 [rows, 8]: 64 bits each."""
        return np.array(self.map("hashes", np.uint8)).reshape(-1, 8)

    @cached_property
    def tiny(self) -> np.ndarray:
        """The pictures at 8 x 8, uint8 [rows, 192]."""
        return np.array(self.map("tiny", np.uint8)).reshape(-1, 192)

    @cached_property
    def lengths(self) -> np.ndarray:
        """One for all: pictures of a set have one size, and need no padding."""
        return np.full(self.rows, 8, np.int32)

    @cached_property
    def _names(self) -> Strings:
        return Strings(self, "names")

    @cached_property
    def _encoded(self) -> Strings:
        return Strings(self, "encoded")

    def name(self, row: int) -> str:
        """The path of a picture, or its place in the set."""
        return os.fsdecode(self._names[row])

    def raw(self, row: int) -> tuple[str | bytes]:
        """The path of a picture's file, or its bytes."""
        return (self._encoded[row] if self.meta["copied"] else self.name(row),)


def prepare(request: Request, inputs: ImageInputs, cache: Path, keep: bool | str) -> Pictures:
    """Take a set from the cache, or look at all its pictures first.

    Args:
        keep: whether the pixels are kept; `auto`: if they are few enough.

    Raises:
        UserError: a picture is broken and `on_bad_row` is stop; or none is left.
    """
    if request.source.source in COPIED:  # pictures come in the rows: they are never all in memory
        rows: Iterable[Row | BadRow] = read(request)
    else:
        rows = list(read(request))
    content = digest(_content(request, rows))
    folder = cache / "pictures" / _cache_key(request, inputs, content, keep)

    def write(temporary: Path) -> dict[str, Any]:
        meta = _write(temporary, request, inputs, rows, keep)
        request.check_unchanged(content, digest(_content(request, rows)))
        return meta

    written(folder, write)
    prepared = Pictures(folder)
    if prepared.rows == 0:
        raise prepared.unusable(request, "image")
    return prepared


def read(request: Request) -> Iterator[Row | BadRow]:
    """The rows of a source, each picture with its path or its bytes."""
    multi_label = request.separator is not None
    rows = sources.read(request.source, request.columns, request.key, multi_label)
    return rows if request.source.source == "images" else sources.with_paths(rows)


def _cache_key(request: Request, inputs: ImageInputs, content: str, keep: bool | str) -> str:
    settings = [VERSION, inputs.fingerprint, request.columns, request.on_bad_row, keep]
    settings += [request.separator, request.source.model_dump(mode="json")]
    return digest([json.dumps(settings).encode(), content.encode()])


def _content(request: Request, rows: Iterable[Row | BadRow]) -> Iterator[bytes]:
    """What changes when the pictures could.

    Files are known by size and time of change: to read all of them would take as long again.
    """
    if request.source.source in COPIED:
        yield from sources.content(request.source, request.key)
        return
    for row in rows:
        yield row.place.encode("utf-8", "surrogateescape")
        if isinstance(row, BadRow):
            yield row.reason.encode("utf-8", "backslashreplace")
            continue
        yield "\0".join(row.values).encode("utf-8", "surrogateescape")
        try:
            found = os.stat(row.values[0])
        except (OSError, ValueError):
            continue
        yield f"{found.st_size} {found.st_mtime_ns}".encode()


def _write(
    folder: Path,
    request: Request,
    inputs: ImageInputs,
    rows: Iterable[Row | BadRow],
    keep: bool | str,
) -> dict[str, Any]:
    copied = request.source.source in COPIED
    names = ["names", "names_ends", "sizes", "hashes", "tiny", "pixels"]
    names += ["encoded", "encoded_ends"] if copied else []
    writer = Writer(folder, request, names, places=("names", "names_ends", "pixels"))
    room = min(KEPT, int(SHARE * shutil.disk_usage(folder).free)) if keep == "auto" else None
    kept, each = bool(keep), 3 * int(np.prod(inputs.image_spec.size))
    total = f" of {len(rows):,}" if isinstance(rows, list) else ""
    began = time.monotonic()
    try:
        for chunk in _looked_at(rows, inputs):
            good: list[Row] = []
            for row, found in chunk:
                if isinstance(row, BadRow):
                    writer.reject(row)
                elif copied and not isinstance(row.values[0], bytes):
                    reason = f"{request.columns[0]!r} holds no picture; data.image names the column"
                    writer.reject(BadRow(row.place, reason))
                elif isinstance(found, str):
                    writer.reject(BadRow(_place(row), found))
                else:
                    writer.put("sizes", found.size)
                    writer.put("hashes", np.packbits(found.bits))
                    writer.put("tiny", found.tiny)
                    good.append(row)
                    if kept and room is not None and (writer.rows + len(good)) * each > room:
                        kept = False
                        writer.drop("pixels")
                    if kept:
                        writer.put("pixels", found.pixels)
            writer.put_strings("names", [os.fsencode(_name(row)) for row in good])
            if copied:
                writer.put_strings("encoded", [row.values[0] for row in good])
            writer.count(good)
            speed = writer.rows / max(1e-9, time.monotonic() - began)
            console.progress(
                f"looking at {request.key}: {writer.rows:,}{total} pictures, {speed:,.0f} a second"
            )
    finally:
        writer.close()
    seconds = time.monotonic() - began
    console.progress(f"looked at {request.key}: {writer.rows:,} pictures in {seconds:.1f} s", True)
    size = list(inputs.image_spec.size)
    return {**writer.meta(), "size": size, "pixels": kept, "copied": copied}


def _looked_at(
    rows: Iterable[Row | BadRow], inputs: ImageInputs
) -> Iterator[list[tuple[Row | BadRow, Any]]]:
    """Each row with what its picture is, or what is wrong with it; in order, by threads."""

    def look(row: Row | BadRow) -> Any:
        if isinstance(row, BadRow):
            return None
        encoded = row.values[0]
        if isinstance(encoded, str):
            try:
                encoded = read_picture(encoded)
            except UserError as error:
                return str(error).removeprefix(f"{row.values[0]}: ")
        return inputs.inspect(encoded)

    waiting = iter(rows)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while chunk := list(islice(waiting, CHUNK)):
            yield list(zip(chunk, pool.map(look, chunk), strict=True))


def _name(row: Row) -> str:
    return row.values[0] if isinstance(row.values[0], str) else row.place


def _place(row: Row) -> str:
    """The picture's path, after its place in a table if it is named in one."""
    path = row.values[0]
    return row.place if not isinstance(path, str) or path == row.place else f"{row.place}: {path}"
