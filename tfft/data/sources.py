"""Readers of rows: one function a format, streaming, each row with the place it came from.

A row is a tuple of the wanted columns as text; a picture is the path of its file, or its bytes. A
reader yields `Row`s and, for what it cannot read, `BadRow`s, so that one policy
(`data.on_bad_row`) treats every format alike.
"""

import csv
import glob
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tfft.config import Source
from tfft.errors import UserError, nearest, require


@dataclass(frozen=True)
class Row:
    """The wanted columns of one row, and where it stands."""

    place: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: where it stands, what is wrong, what would do."""

    place: str
    reason: str


Columns = Sequence[str | int]
SEVERAL = "\x1f"  # between the labels of a row whose source gives a list of them
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
# (source, columns, the source's key in the config) -> its rows
Reader = Callable[[Source, Columns, str], Iterator[Row | BadRow]]


def paths(source: Source, key: str) -> list[Path]:
    """The files of a source, in sorted order within each glob.

    Raises:
        UserError: a path does not exist, or a glob matches nothing.
    """
    given = [source.path] if isinstance(source.path, str) else source.path
    found: list[Path] = []
    for item in given:
        path = Path(item).expanduser()
        if path.is_file():
            found.append(path)
        elif glob.has_magic(item):
            matched = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
            matched = [p for p in matched if p.is_file()]
            if not matched:
                raise UserError(f"{key}.path: {item} matches no file")
            found += matched
        elif path.is_dir():
            raise UserError(f"{key}.path: {item} is a folder; write {item.rstrip('/')}/*")
        else:
            near = path.parent.iterdir() if path.parent.is_dir() else ()
            hint = nearest(path.name, (p.name for p in near))
            raise UserError(f"{key}.path: no such file: {item}{hint}")
    return found


def read(
    source: Source, columns: Columns, key: str, several: bool = False
) -> Iterator[Row | BadRow]:
    """All rows of a source, every one with its columns present and its texts not empty.

    `several`: whether a row may have several labels, or none.
    """
    for row in SOURCES[source.source](source, columns, key):
        yield _checked(row, columns, several) if isinstance(row, Row) else row


def content(source: Source, key: str) -> Iterator[bytes]:
    """What changes when the rows could."""
    if source.source == "tfds":
        # Prepared sets do not change under a version; the name may carry one.
        yield f"{source.path}|{key}".encode()
        import tensorflow_datasets as tfds

        try:
            builder = tfds.builder(str(source.path), data_dir=source.data_dir)
        except (tfds.core.registered.DatasetNotFoundError, ValueError, OSError):
            return  # the reader says what is wrong
        yield str(builder.info.full_name).encode()
        yield str(builder.data_path).encode()
        return
    for path in paths(source, key):
        with open(path, "rb") as file:
            # The name stands in the messages of bad rows.
            yield str(path).encode()
            yield hashlib.file_digest(file, "sha256").digest()


def with_paths(rows: Iterator[Row | BadRow]) -> Iterator[Row | BadRow]:
    """Rows whose first column is the path of a picture: from the folder of the table that names it,
    else from the working directory."""
    for row in rows:
        if isinstance(row, BadRow) or isinstance(row.values[0], bytes):
            yield row
            continue
        path = Path(row.values[0]).expanduser()
        table = Path(row.place.rpartition(":")[0])
        near = table.parent / path
        found = near if near.is_file() or not path.is_file() else path
        yield Row(row.place, (str(found), *row.values[1:]))


def _checked(row: Row, columns: Columns, several: bool) -> Row | BadRow:
    for at, (column, value) in enumerate(zip(columns, row.values, strict=True)):
        if isinstance(value, bytes) or (several and at == len(columns) - 1):
            continue
        if SEVERAL in value:
            return BadRow(row.place, f"column {column!r} holds several labels; one is expected")
        if not value.strip():
            return BadRow(row.place, f"column {column!r} is empty; fill it or drop the row")
    return row


def _delimited(source: Source, columns: Columns, key: str) -> Iterator[Row | BadRow]:
    for path in paths(source, key):
        yield from _delimited_file(path, source, columns)


def _delimited_file(path: Path, source: Source, columns: Columns) -> Iterator[Row | BadRow]:
    quoting = source.source == "csv" if source.quoting is None else source.quoting
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    lines = _lines(path, source.encoding)
    reader = csv.reader(
        lines,
        delimiter="," if source.source == "csv" else "\t",
        quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE,
        strict=True,
    )
    indices, width = None, None
    if isinstance(columns[0], int):
        indices = [int(c) for c in columns]
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield BadRow(f"{path}:{start}", f"{error}; mend the quotes or set quoting: false")
            continue
        if not cells or cells == [""]:
            continue  # a blank line separates nothing and means nothing
        if indices is None:
            indices, width = _by_name(cells, columns, f"{path}:1"), len(cells)
            continue
        if width is None:
            width = len(cells)
            _check_positions(indices, width, f"{path}:{start}")
        if len(cells) != width:
            reason = f"{len(cells)} columns where {width} are expected"
            yield BadRow(f"{path}:{start}", f"{reason}; mend the separators or the quotes")
            continue
        yield Row(f"{path}:{start}", tuple(cells[i] for i in indices))
    if indices is None:
        raise UserError(f"{path}: empty; needs a header line with {', '.join(map(str, columns))}")


def _by_name(header: Sequence[str], columns: Columns, place: str) -> list[int]:
    missing = [c for c in columns if c not in header]
    if missing:
        raise UserError(
            f"{place}: no column {missing[0]!r} in the header{nearest(missing[0], header)} "
            "(a column given as a number means a file without a header)"
        )
    return [list(header).index(str(c)) for c in columns]


def _check_positions(indices: Sequence[int], width: int, place: str) -> None:
    wrong = [i for i in indices if not 0 <= i < width]
    if wrong:
        raise UserError(f"{place}: no column {wrong[0]}: the row has {width} (0 to {width - 1})")


def _lines(path: Path, encoding: str) -> Iterator[str]:
    """Decoded lines of a file; a byte-order mark is dropped."""
    try:
        "".encode(encoding)
    except LookupError:
        raise UserError(
            f"data: unknown encoding {encoding!r}; try utf-8, latin-1 or cp1252"
        ) from None
    encoding = "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
    number = 0
    with open(path, encoding=encoding, newline="") as file:
        while True:
            try:
                line = file.readline()
            except UnicodeDecodeError as error:
                # The codec reads ahead by blocks: the line at fault is found by its bytes.
                line_number, byte = _first_undecodable(path, encoding, number)
                raise UserError(
                    f"{path}:{line_number}: byte 0x{byte:02x} is not {error.encoding}; declare the "
                    "file's encoding, e.g. encoding: latin-1"
                ) from None
            if not line:
                return
            number += 1
            yield line.replace("\0", "\ufffd")


def _first_undecodable(path: Path, encoding: str, at_least: int) -> tuple[int, int]:
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                raw.decode(encoding)
            except UnicodeDecodeError as error:
                return number, raw[error.start]
    return at_least + 1, 0


def _jsonl(source: Source, columns: Columns, key: str) -> Iterator[Row | BadRow]:
    if isinstance(columns[0], int):
        raise UserError(f"{key}: columns of jsonl are named, not numbered. Received: {columns[0]}")
    for path in paths(source, key):
        for number, line in enumerate(_lines(path, source.encoding), 1):
            if line.strip():
                yield _json_row(line, columns, f"{path}:{number}")


def _json_row(line: str, columns: Columns, place: str) -> Row | BadRow:
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep"
        return BadRow(place, f"not valid JSON ({reason}); one object a line is expected")
    if not isinstance(value, dict):
        return BadRow(place, f"holds {type(value).__name__}, not an object")
    return _from_mapping(value, columns, place)


def _from_mapping(value: Mapping[str, Any], columns: Columns, place: str) -> Row | BadRow:
    cells = []
    for column in columns:
        if column not in value:
            return BadRow(place, f"no key {column!r}{nearest(column, value)}")
        cell = value[column]
        if isinstance(cell, list) and all(isinstance(c, str | int) for c in cell):
            cells.append(SEVERAL.join(map(str, cell)))
            continue
        if isinstance(cell, bool) or not isinstance(cell, str | int | float):
            kind = "null" if cell is None else type(cell).__name__
            return BadRow(place, f"{column!r} is {kind}; text or a number is expected")
        cells.append(str(cell))
    return Row(place, tuple(cells))


def _parquet(source: Source, columns: Columns, key: str) -> Iterator[Row | BadRow]:
    parquet = require("pyarrow.parquet", "parquet")
    arrow = require("pyarrow", "parquet")
    for path in paths(source, key):
        try:
            file = parquet.ParquetFile(path)
        except (arrow.ArrowInvalid, OSError) as error:
            raise UserError(f"{path}: not a parquet file: {error}") from None
        names = file.schema_arrow.names
        if isinstance(columns[0], int):
            _check_positions([int(c) for c in columns], len(names), str(path))
            wanted = [names[int(c)] for c in columns]
        else:
            _by_name(names, columns, str(path))
            wanted = [str(c) for c in columns]
        number = 0
        for batch in file.iter_batches(batch_size=4096, columns=wanted):
            for value in batch.to_pylist():
                number += 1
                yield _from_mapping(value, wanted, f"{path}: row {number}")


def _tfds(source: Source, columns: Columns, key: str) -> Iterator[Row | BadRow]:
    """Rows of a TFDS set; class labels come as their names."""
    if isinstance(columns[0], int):
        raise UserError(f"{key}: columns of tfds are named, not numbered. Received: {columns[0]}")
    import tensorflow_datasets as tfds

    split = source.split or key.rpartition(".")[2]
    try:
        builder = tfds.builder(str(source.path), data_dir=source.data_dir)
        if not builder.is_prepared():
            builder.download_and_prepare()
        # Pictures are decoded here as everywhere, not by TFDS.
        encoded = {
            name: tfds.decode.SkipDecoding()
            for name, feature in builder.info.features.items()
            if isinstance(feature, tfds.features.Image)
        }
        dataset = builder.as_dataset(split=split, shuffle_files=False, decoders=encoded)
    except tfds.core.registered.DatasetNotFoundError as error:
        raise UserError(f"{key}.path: {str(error).splitlines()[0]}") from None
    except (ValueError, AssertionError, OSError, ConnectionError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{key}: TFDS cannot give {source.path} [{split}]: {reason}") from None
    features = builder.info.features
    _by_name(list(features), columns, f"{source.path} [{split}]")
    for number, value in enumerate(tfds.as_numpy(dataset)):
        cells = tuple(_tfds_cell(features[str(c)], value[c]) for c in columns)
        yield Row(f"tfds:{source.path} [{split}]: row {number}", cells)


def _tfds_cell(feature: Any, value: Any) -> Any:
    if type(feature).__name__ == "Image":
        return bytes(value)
    if hasattr(feature, "int2str") and getattr(feature, "num_classes", None):
        return feature.int2str(int(value)) if int(value) >= 0 else ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _images(source: Source, columns: Columns, key: str) -> Iterator[Row | BadRow]:
    """Folders with a folder for each class; what lies deeper in one is of that class."""
    given = [source.path] if isinstance(source.path, str) else source.path
    for item in given:
        root = Path(item).expanduser()
        if not root.is_dir():
            near = root.parent.iterdir() if root.parent.is_dir() else ()
            hint = nearest(root.name, (p.name for p in near if p.is_dir()))
            raise UserError(f"{key}.path: no such folder: {item}{hint}")
        classes = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        if not classes:
            raise UserError(f"{key}.path: {item} holds no folder; each class needs one of its own")
        for folder in classes:
            for path in _files_below(folder):
                yield Row(str(path), (str(path), folder.name))


def _files_below(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(PICTURES):
                yield Path(where) / name


def _npz(source: Source, columns: Columns, key: str) -> Iterator[Row | BadRow]:
    """Arrays of pixels, [N, H, W] or [N, H, W, C], and of labels; each picture becomes a PNG."""
    import numpy as np

    for path in paths(source, key):
        try:
            with np.load(path, allow_pickle=False) as file:
                _by_name(list(file), columns, str(path))
                arrays = [file[str(column)] for column in columns]
        except (ValueError, OSError, EOFError) as error:
            raise UserError(f"{path}: not an npz file of plain arrays: {error}") from None
        images, labels = arrays[0], arrays[-1]
        if len(images) != len(labels) or images.ndim not in (3, 4):
            raise UserError(
                f"{path}: {columns[0]} must be [N, H, W] or [N, H, W, C] and {columns[-1]} [N]; "
                f"received {list(images.shape)} and {list(labels.shape)}"
            )
        if images.dtype != np.uint8:
            raise UserError(
                f"{path}: {columns[0]} must be uint8, from 0 to 255; received {images.dtype}"
            )
        if images.ndim == 4 and images.shape[-1] not in (1, 3, 4):
            raise UserError(f"{path}: {columns[0]} must have 1, 3 or 4 channels")
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            name = label.decode() if isinstance(label, bytes) else str(label)
            yield Row(f"{path}: row {number}", (_png(image), name))


def _png(pixels: Any) -> bytes:
    import tensorflow as tf

    return tf.io.encode_png(pixels[..., None] if pixels.ndim == 2 else pixels).numpy()


SOURCES: Mapping[str, Reader] = MappingProxyType(
    {
        "csv": _delimited,
        "tsv": _delimited,
        "jsonl": _jsonl,
        "parquet": _parquet,
        "tfds": _tfds,
        "images": _images,
        "npz": _npz,
    }
)
