"""Inspect images once: find broken ones, store sizes and hashes, cache pixels where that pays.

The texts beside them are tokenised in the same pass, so that a bad image or text rejects the row.

Each file is decoded by the ops that serving uses. The cache holds little about it: the files stay
in place, except for the images of a TFDS dataset or an npz file, whose bytes are copied.
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
from tfft.data.prepared import ByteStrings, Prepared, Request, Writer, digest, write_once
from tfft.data.sources import BadRow, Row
from tfft.data.texts import PreparedTexts, TokenFiles
from tfft.preprocess import ImageInputs, Inputs
from tfft.preprocess.image import read as read_image
from tfft.utils import console
from tfft.utils.errors import UserError

VERSION = 4  # of the format: raise it when the files written below change
EMBEDDED_SOURCES = ("tfds", "npz")  # sources whose rows hold encoded images, not paths
CHUNK_SIZE = 256  # images that are handed to the thread pool at once
MAX_PIXEL_BYTES = 4 * 2**30  # of a set, under `cache_images: auto`
MAX_DISK_SHARE = 0.25  # of the free disk space, under `cache_images: auto`


class PreparedImages(Prepared):
    """A set of inspected images.

    Attributes:
        size: height and width of the model's input.
    """

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.size: tuple[int, int] = tuple(self.meta["size"])

    @cached_property
    def pixels(self) -> np.ndarray | None:
        """Pixels at the model's size, uint8 [rows, H, W, 3]; None if not cached."""
        if not self.meta["pixels"]:
            return None
        return self.map("pixels", np.uint8).reshape(self.rows, *self.size, 3)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Height and width of each image file, int32 [rows, 2]."""
        return np.array(self.map("sizes", np.int32)).reshape(-1, 2)

    @cached_property
    def hashes(self) -> np.ndarray:
        """Difference hashes of 64 bits, uint8 [rows, 8]."""
        return np.array(self.map("hashes", np.uint8)).reshape(-1, 8)

    @cached_property
    def tiny(self) -> np.ndarray:
        """Thumbnails of 8 x 8 pixels, uint8 [rows, 192]."""
        return np.array(self.map("tiny", np.uint8)).reshape(-1, 192)

    @cached_property
    def lengths(self) -> np.ndarray:
        """The same number for each row, int32 [rows]: images of one size need no buckets."""
        # 8 is the smallest bucket length.
        return np.full(self.rows, 8, np.int32)

    @cached_property
    def _names(self) -> ByteStrings:
        return ByteStrings(self, "names")

    @cached_property
    def _encoded(self) -> ByteStrings:
        return ByteStrings(self, "encoded")

    def name(self, row: int) -> str:
        """Return the path of an image, or its place in the set."""
        return os.fsdecode(self._names[row])

    def image(self, row: int) -> str | bytes:
        """Return the path of an image file, or its bytes."""
        return self._encoded[row] if self.meta["copied"] else self.name(row)

    def raw_row(self, row: int) -> tuple[Any, ...]:
        """Return the image of a row."""
        return (self.image(row),)


class PreparedPairs(PreparedTexts, PreparedImages):
    """A set of texts and images; batches are planned by the tokens."""

    def raw_row(self, row: int) -> tuple[Any, ...]:
        """Return the texts of a row and its image."""
        return (*self.texts(row), self.image(row))


def prepare(
    request: Request, inputs: Inputs, cache: Path, cache_pixels: bool | str
) -> PreparedImages:
    """Load a set from the cache, or inspect all its images first.

    Args:
        request: the source and how to treat it.
        inputs: decodes the images, and tokenises the texts beside them.
        cache: folder of the cache.
        cache_pixels: whether to cache the pixels; `auto`: if they are small enough.

    Raises:
        UserError: an image is broken and `on_bad_row` is stop, or no row is usable.
    """
    if request.source.source in EMBEDDED_SOURCES:  # stream: the images do not fit into memory
        rows: Iterable[Row | BadRow] = read(request)
    else:
        # A list of paths fits into memory, and its length is known.
        rows = list(read(request))
    content = digest(_content(request, rows))
    folder = cache / "images" / _cache_key(request, inputs, content, cache_pixels)

    def write(temporary: Path) -> dict[str, Any]:
        meta = _write(temporary, request, inputs, rows, cache_pixels)
        request.check_unchanged(content, digest(_content(request, rows)))
        return meta

    write_once(folder, write)
    prepared = PreparedImages(folder) if inputs.text is None else PreparedPairs(folder)
    if prepared.rows == 0:
        raise prepared.no_rows_error(request, "image")
    return prepared


def read(request: Request) -> Iterator[Row | BadRow]:
    """Yield the rows of a source, each image as its path or its bytes."""
    rows = sources.read(request.source, request.columns, request.key, request.targets)
    if request.source.source == "images":
        return rows
    return sources.with_image_paths(rows, request.image_index)


def _cache_key(request: Request, inputs: Inputs, content: str, cache_pixels: bool | str) -> str:
    settings = [VERSION, inputs.fingerprint, *request.cache_key, cache_pixels]
    settings += [request.source.model_dump(mode="json")]
    return digest([json.dumps(settings).encode(), content.encode()])


def _content(request: Request, rows: Iterable[Row | BadRow]) -> Iterator[bytes]:
    """Yield what identifies the images, for a digest.

    Files are identified by size and modification time: reading all of them would take as long as
    inspecting them.
    """
    if request.source.source in EMBEDDED_SOURCES:
        yield from sources.content(request.source, request.key)
        return
    for row in rows:
        yield row.place.encode("utf-8", "surrogateescape")
        if isinstance(row, BadRow):
            yield row.reason.encode("utf-8", "backslashreplace")
            continue
        # A path may hold any bytes.
        yield "\0".join(row.values).encode("utf-8", "surrogateescape")
        try:
            status = os.stat(row.values[request.image_index])
        except (OSError, ValueError):
            # Inspecting the image reports why it cannot be read.
            continue
        yield f"{status.st_size} {status.st_mtime_ns}".encode()


def _write(
    folder: Path,
    request: Request,
    inputs: Inputs,
    rows: Iterable[Row | BadRow],
    cache_pixels: bool | str,
) -> dict[str, Any]:
    """Inspect all rows and write the files of the set; return its meta data."""
    copied, column = request.source.source in EMBEDDED_SOURCES, request.image_index
    file_names = ["names", "names_ends", "sizes", "hashes", "tiny", "pixels"]
    file_names += ["encoded", "encoded_ends"] if copied else []
    file_names += TokenFiles.names(request) if inputs.text is not None else []
    writer = Writer(folder, request, file_names, derived=("names", "names_ends", "pixels"))
    tokens = TokenFiles(writer, request, inputs.text) if inputs.text is not None else None
    # With `auto`, the budget is fixed before the first image is written.
    budget = (
        min(MAX_PIXEL_BYTES, int(MAX_DISK_SHARE * shutil.disk_usage(folder).free))
        if cache_pixels == "auto"
        else None
    )
    size = inputs.image.image_spec.size
    caching, image_bytes = bool(cache_pixels), 3 * int(np.prod(size))
    total = f" of {len(rows):,}" if isinstance(rows, list) else ""
    start_time = time.monotonic()
    try:
        for chunk in _inspect_rows(rows, inputs.image, column):
            good_rows: list[Row] = []
            for row, inspected in chunk:
                if isinstance(row, BadRow):
                    writer.reject(row)
                elif copied and not isinstance(row.values[column], bytes):
                    reason = (
                        f"{request.columns[column]!r} holds no image; data.image names the column"
                    )
                    writer.reject(BadRow(row.place, reason))
                elif isinstance(inspected, str):
                    writer.reject(BadRow(_location(row, column), inspected))
                else:
                    writer.put("sizes", inspected.size)
                    writer.put("hashes", np.packbits(inspected.bits))  # 64 bits -> 8 bytes
                    writer.put("tiny", inspected.tiny)
                    good_rows.append(row)
                    # All rows or none have cached pixels.
                    if (
                        caching
                        and budget is not None
                        and (writer.rows + len(good_rows)) * image_bytes > budget
                    ):
                        caching = False
                        writer.drop("pixels")
                    if caching:
                        writer.put("pixels", inspected.pixels)
            names = [os.fsencode(_display_name(row, column)) for row in good_rows]
            writer.put_strings("names", names)
            if copied:
                writer.put_strings("encoded", [row.values[column] for row in good_rows])
            if tokens is not None and good_rows:
                tokens.append(good_rows)
            writer.add_rows(good_rows)
            speed = writer.rows / max(1e-9, time.monotonic() - start_time)
            console.progress(
                f"inspecting {request.key}: {writer.rows:,}{total} images, {speed:,.0f} images/s"
            )
    finally:
        writer.close()
    seconds = time.monotonic() - start_time
    console.progress(f"inspected {request.key}: {writer.rows:,} images in {seconds:.1f} s", True)
    meta = {**writer.meta(), "size": list(size), "pixels": caching, "copied": copied}
    return meta if tokens is None else {**meta, **tokens.meta()}


def _inspect_rows(
    rows: Iterable[Row | BadRow], inputs: ImageInputs, column: int = 0
) -> Iterator[list[tuple[Row | BadRow, Any]]]:
    """Yield chunks of (row, inspected image or what is wrong with it), in order.

    Threads decode the images of a chunk, which are at index `column` of the rows.
    """

    def inspect(row: Row | BadRow) -> Any:
        if isinstance(row, BadRow):
            return None
        encoded = row.values[column]
        if isinstance(encoded, str):
            try:
                encoded = read_image(encoded)
            except UserError as error:
                # The caller writes the path in front of the reason.
                return str(error).removeprefix(f"{row.values[column]}: ")
        return inputs.inspect(encoded)

    remaining = iter(rows)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while chunk := list(islice(remaining, CHUNK_SIZE)):
            yield list(zip(chunk, pool.map(inspect, chunk), strict=True))


def _display_name(row: Row, column: int) -> str:
    image = row.values[column]
    return image if isinstance(image, str) else row.place


def _location(row: Row, column: int) -> str:
    """Return the image's path, preceded by its place in a table if a table names it."""
    path = row.values[column]
    return row.place if not isinstance(path, str) or path == row.place else f"{row.place}: {path}"
