"""Readers of parquet, npz, TFDS and folders of pictures."""

import math
import os
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tfft.config import Source
from tfft.data.records import (
    BadRow,
    Columns,
    Row,
    by_name,
    check_positions,
    from_mapping,
    not_a_number,
    paths,
)
from tfft.utils.errors import UserError, nearest, require
from tfft.utils.reading import MIB, expanded, library_errors, open_regular, parsed

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
LARGEST = 128 * MIB  # bytes of a row of an array


def parquet(source: Source, columns: Columns, key: str) -> Iterator[Row | BadRow]:
    """Rows of parquet files."""
    library = require("pyarrow.parquet", "parquet")
    for path in paths(source, key):
        what = f"{path}: not a parquet file"
        with library_errors(what):
            file = library.ParquetFile(path)
            names = file.schema_arrow.names
        if isinstance(columns[0], int):
            check_positions([int(c) for c in columns], len(names), str(path))
            wanted = [names[int(c)] for c in columns]
        else:
            wanted = [str(c) for c in columns]
        by_name(names, wanted, str(path))
        batches = file.iter_batches(batch_size=1024, columns=wanted)
        number = 0
        for values in parsed((batch.to_pylist() for batch in batches), what):
            for value in values:
                number += 1
                yield from_mapping(value, wanted, f"{path}: row {number}")


def tfds(source: Source, columns: Columns, key: str) -> Iterator[Row | BadRow]:
    """Rows of a TFDS set; class labels come as their names."""
    if isinstance(columns[0], int):
        raise UserError(f"{key}: columns of tfds are named, not numbered. Received: {columns[0]}")
    import tensorflow_datasets as library

    split = source.split or key.rpartition(".")[2]
    builder = tfds_builder(source, key)
    what = f"{key}: TFDS cannot give {source.path} [{split}]"
    with library_errors(what):
        if not builder.is_prepared():
            builder.download_and_prepare()
        # Pictures are decoded here as everywhere, not by TFDS.
        encoded = {
            name: library.decode.SkipDecoding()
            for name, feature in builder.info.features.items()
            if isinstance(feature, library.features.Image)
        }
        dataset = builder.as_dataset(split=split, shuffle_files=False, decoders=encoded)
        features = builder.info.features
    by_name(list(features), columns, f"{source.path} [{split}]")
    for number, value in enumerate(parsed(library.as_numpy(dataset), what)):
        place = f"tfds:{source.path} [{split}]: row {number}"
        missing = [c for c in columns if not_a_number(value[c])]
        if missing:
            yield BadRow(place, f"{missing[0]!r} is {value[missing[0]]}")
            continue
        yield Row(place, tuple(_tfds_cell(features[str(c)], value[c]) for c in columns))


def tfds_builder(source: Source, key: str) -> Any:
    """What reads a set of TFDS' own, or one that is prepared in `data_dir`.

    Raises:
        UserError: there is none, or it would run code that is not TFDS' own.
    """
    import tensorflow_datasets as library

    with library_errors(f"{key}.path: no set of TFDS"):
        name, _ = library.core.naming.parse_builder_name_kwargs(str(source.path))
    if name.namespace:
        raise UserError(
            f"{key}.path: sets of a namespace run code that is downloaded; name one of TFDS' own. "
            f"Received: {source.path}"
        )
    with library_errors(f"{key}: TFDS cannot give {source.path}"), _features_of_tfds(library):
        try:
            return library.builder(str(source.path), data_dir=source.data_dir)
        except library.core.registered.DatasetNotFoundError as error:
            raise UserError(f"{key}.path: {str(error).splitlines()[0]}") from None


@contextmanager
def _features_of_tfds(library: Any) -> Iterator[None]:
    """Within: the files of a set name no module that is imported.

    TFDS imports whatever module `pythonClassName` in features.json names.
    """
    base = library.features.FeatureConnector

    def cls_from_name(cls: Any, name: str) -> Any:
        if name not in cls._registered_features and not name.startswith(_TFDS_MODULES):
            raise UserError(
                f"tfds: the set's files name {name!r}, whose module would be imported; only "
                "features of TFDS' own are read"
            )
        return original.__func__(cls, name)

    with _REPLACING:
        original = vars(base)["cls_from_name"]
        base.cls_from_name = classmethod(cls_from_name)
        try:
            yield
        finally:
            base.cls_from_name = original


_TFDS_MODULES = "tensorflow_datasets."
_REPLACING = threading.Lock()  # a method of TFDS' class, which all threads see


def _tfds_cell(feature: Any, value: Any) -> Any:
    if type(feature).__name__ == "Image":
        return bytes(value)
    if hasattr(feature, "int2str") and getattr(feature, "num_classes", None):
        return feature.int2str(int(value)) if int(value) >= 0 else ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def images(source: Source, columns: Columns, key: str) -> Iterator[Row | BadRow]:
    """Folders with a folder for each class; what lies deeper in one is of that class."""
    given = [source.path] if isinstance(source.path, str) else source.path
    for item in given:
        root = expanded(item)
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


def npz(source: Source, columns: Columns, key: str) -> Iterator[Row | BadRow]:
    """Arrays of pixels, [N, H, W] or [N, H, W, C], and of labels; each picture becomes a PNG."""
    for path in paths(source, key):
        what = f"{path}: not an npz file of plain arrays"
        with open_regular(path) as file:
            with library_errors(what):
                archive = zipfile.ZipFile(file)
                names = [name.removesuffix(".npy") for name in archive.namelist()]
            by_name(names, columns, str(path))
            with library_errors(what):
                pixels, labels = (_Array(archive, str(c)) for c in (columns[0], columns[-1]))
            _check_pixels(pixels, labels, columns, path)
            for number in range(pixels.shape[0]):
                place = f"{path}: row {number}"
                with library_errors(what):
                    image, label = pixels.next_row(), labels.next_row()[()]
                    name = label.decode() if isinstance(label, bytes) else str(label)
                if not_a_number(label):
                    yield BadRow(place, f"{columns[-1]!r} is {label}")
                else:
                    yield Row(place, (_png(image), name))
            with library_errors(what):
                pixels.end(), labels.end()


class _Array:
    """An array in an npz file, read a row at a time: it may declare any size.

    Raises:
        ValueError: it is not plain, or stored column by column.
    """

    def __init__(self, archive: zipfile.ZipFile, name: str):
        from numpy.lib import format as npy

        self._file = archive.open(f"{name}.npy")
        version = npy.read_magic(self._file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name}: version {version} of the format")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        self.shape, by_columns, self.dtype = read(self._file)
        self._row = math.prod(self.shape[1:]) * self.dtype.itemsize
        if self.dtype.hasobject:
            raise ValueError(f"{name} holds Python objects")
        if not self.shape or min(self.shape) < 0 or self._row > LARGEST:
            raise ValueError(f"{name} has the shape {list(self.shape)}")
        if by_columns and len(self.shape) > 1:
            raise ValueError(f"{name} is stored column by column; save np.ascontiguousarray of it")

    def next_row(self) -> Any:
        """The next row, an array of `shape[1:]`."""
        import numpy as np

        content = self._file.read(self._row)
        if len(content) < self._row:
            raise EOFError("it is cut off")
        return np.ndarray(self.shape[1:], self.dtype, content)

    def end(self) -> None:
        """Read the end of the file, at which zipfile compares its checksum."""
        self._file.read(1)


def _check_pixels(pixels: _Array, labels: _Array, columns: Columns, path: Path) -> None:
    if pixels.shape[0] != labels.shape[0] or len(pixels.shape) not in (3, 4) or labels.shape[1:]:
        raise UserError(
            f"{path}: {columns[0]} must be [N, H, W] or [N, H, W, C] and {columns[-1]} [N]; "
            f"received {list(pixels.shape)} and {list(labels.shape)}"
        )
    if pixels.dtype.str != "|u1":
        raise UserError(
            f"{path}: {columns[0]} must be uint8, from 0 to 255; received {pixels.dtype}"
        )
    if 0 in pixels.shape[1:3] or (len(pixels.shape) == 4 and pixels.shape[-1] not in (1, 3, 4)):
        raise UserError(f"{path}: {columns[0]} must have pixels, of 1, 3 or 4 channels")


def _png(pixels: Any) -> bytes:
    import tensorflow as tf

    return tf.io.encode_png(pixels[..., None] if pixels.ndim == 2 else pixels).numpy()
