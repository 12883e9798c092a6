"""Readers of parquet files, npz files, TFDS datasets and folders of images."""

import json
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
    check_column_indices,
    column_indices,
    is_not_finite,
    row_from_mapping,
    source_files,
)
from tfft.utils.errors import UserError, nearest, require
from tfft.utils.reading import MIB, expanded, library_errors, open_regular, parsed

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
MAX_ROW_BYTES = 128 * MIB  # of one row of an array in an npz file


def parquet(source: Source, columns: Columns, key: str) -> Iterator[Row | BadRow]:
    """Yield the rows of parquet files."""
    library = require("pyarrow.parquet", "parquet")
    for path in source_files(source, key):
        message = f"{path}: not a parquet file"
        with library_errors(message):
            file = library.ParquetFile(path)
            names = file.schema_arrow.names
        if isinstance(columns[0], int):
            check_column_indices([int(c) for c in columns], len(names), str(path))
            names_to_read = [names[int(c)] for c in columns]  # pyarrow selects by name
        else:
            names_to_read = [str(c) for c in columns]
        column_indices(names, names_to_read, str(path))
        # In batches, so that a file need not fit into memory.
        batches = file.iter_batches(batch_size=1024, columns=names_to_read)
        row_number = 0
        for records in parsed((batch.to_pylist() for batch in batches), message):
            for record in records:
                row_number += 1
                yield row_from_mapping(record, names_to_read, f"{path}: row {row_number}")


def parquet_columns(source: Source, key: str) -> tuple[list[str], int]:
    """Return the columns of parquet files, without binary values, and their rows.

    Args:
        source: the files; the columns are those of the first one.
        key: the source's key in the config, for errors.

    Returns:
        Names of the columns, and the number of rows of all files.
    """
    library = require("pyarrow.parquet", "parquet")
    names: list[str] = []
    rows = 0
    for number, path in enumerate(source_files(source, key)):
        with library_errors(f"{path}: not a parquet file"):
            file = library.ParquetFile(path)
            rows += file.metadata.num_rows
            if number == 0:
                # The reader refuses binary values, which may be large; a struct may hold them too.
                names = [f.name for f in file.schema_arrow if "binary" not in str(f.type)]
    return names, rows


def parquet_item_names(source: Source, key: str) -> dict[str, list[str]]:
    """Return the class names that Hugging Face's `datasets` declares for the numbers in lists.

    They are in the metadata of the schema: `{"info": {"features": {COLUMN: {"feature": {"names":
    [...]}}}}}`, or `[{"names": [...]}]` for a column.

    Args:
        source: the files; the first one is read.
        key: the source's key in the config, for errors.

    Returns:
        Column -> names, without the columns that have none.
    """
    library = require("pyarrow.parquet", "parquet")
    path = source_files(source, key)[0]
    with library_errors(f"{path}: not a parquet file"):
        metadata = library.ParquetFile(path).schema_arrow.metadata or {}
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):  # written by another program
        return {}
    names = {}
    for column, feature in features.items() if isinstance(features, dict) else ():
        items = feature.get("feature") if isinstance(feature, dict) else feature
        item = items[0] if isinstance(items, list) and items else items
        declared = item.get("names") if isinstance(item, dict) else None
        if isinstance(declared, list) and all(isinstance(name, str) for name in declared):
            names[column] = declared
    return names


def tfds(source: Source, columns: Columns, key: str) -> Iterator[Row | BadRow]:
    """Yield the rows of a TFDS dataset; class labels are given by name."""
    if isinstance(columns[0], int):
        raise UserError(f"{key}: columns of tfds are named, not numbered. Received: {columns[0]}")
    import tensorflow_datasets as library

    # "data.validation" -> "validation"
    split = source.split or key.rpartition(".")[2]
    builder = tfds_builder(source, key)
    message = f"{key}: TFDS cannot give {source.path} [{split}]"
    with library_errors(message):
        if not builder.is_prepared():
            builder.download_and_prepare()
        # TFDS must not decode images: all sources share the decoder that serving uses.
        encoded = {
            name: library.decode.SkipDecoding()
            for name, feature in builder.info.features.items()
            if isinstance(feature, library.features.Image)
        }
        dataset = builder.as_dataset(split=split, shuffle_files=False, decoders=encoded)
        features = builder.info.features
    column_indices(list(features), columns, f"{source.path} [{split}]")
    for row_number, example in enumerate(parsed(library.as_numpy(dataset), message)):
        place = f"tfds:{source.path} [{split}]: row {row_number}"
        missing = [c for c in columns if is_not_finite(example[c])]
        if missing:
            yield BadRow(place, f"{missing[0]!r} is {example[missing[0]]}")
            continue
        yield Row(place, tuple(_tfds_cell(features[str(c)], example[c]) for c in columns))


def tfds_builder(source: Source, key: str) -> Any:
    """Return the builder of a dataset of TFDS, or of one prepared in `data_dir`.

    Args:
        source: names the dataset.
        key: the source's key in the config, for errors.

    Raises:
        UserError: there is no such dataset, or loading it would run downloaded code.
    """
    import tensorflow_datasets as library

    with library_errors(f"{key}.path: no set of TFDS"):
        name, _ = library.core.naming.parse_builder_name_kwargs(str(source.path))
    if name.namespace:
        raise UserError(
            f"{key}.path: sets of a namespace run code that is downloaded; name one of TFDS' own. "
            f"Received: {source.path}"
        )
    with library_errors(f"{key}: TFDS cannot give {source.path}"), _only_tfds_features(library):
        try:
            return library.builder(str(source.path), data_dir=source.data_dir)
        except library.core.registered.DatasetNotFoundError as error:
            raise UserError(f"{key}.path: {str(error).splitlines()[0]}") from None


@contextmanager
def _only_tfds_features(library: Any) -> Iterator[None]:
    """Refuse, within this context, dataset files that name a module outside TFDS.

    TFDS imports any module that `pythonClassName` in features.json names, which runs its code.
    """
    base = library.features.FeatureConnector

    def cls_from_name(cls: Any, name: str) -> Any:
        if name not in cls._registered_features and not name.startswith(_TFDS_MODULES):
            raise UserError(
                f"tfds: the set's files name {name!r}, whose module would be imported; only "
                "features of TFDS' own are read"
            )
        return original.__func__(cls, name)

    with _PATCH_LOCK:
        # From `vars`, the classmethod itself, so that it can be put back unchanged.
        original = vars(base)["cls_from_name"]
        base.cls_from_name = classmethod(cls_from_name)
        try:
            yield
        finally:
            base.cls_from_name = original


_TFDS_MODULES = "tensorflow_datasets."
# Held while a method of a TFDS class is patched: the patch is global.
_PATCH_LOCK = threading.Lock()


def are_answers(feature: Any) -> bool:
    """Return whether a feature of TFDS holds answers: lists of texts and of their starts."""
    shape = getattr(feature, "shape", None)
    return isinstance(shape, dict) and shape.keys() >= {"text", "answer_start"}


def _tfds_cell(feature: Any, value: Any) -> Any:
    if are_answers(feature):
        starts = [int(start) for start in value["answer_start"]]
        return {"text": [_tfds_cell(None, t) for t in value["text"]], "answer_start": starts}
    if getattr(value, "ndim", 0) == 1:  # a sequence
        item = getattr(feature, "feature", None)
        return [_tfds_cell(item, part) for part in value]
    if type(feature).__name__ == "Image":
        return bytes(value)
    if hasattr(feature, "int2str") and getattr(feature, "num_classes", None):
        # TFDS gives -1 where a split has no labels. An empty label becomes a bad row.
        return feature.int2str(int(value)) if int(value) >= 0 else ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def images(source: Source, columns: Columns, key: str) -> Iterator[Row | BadRow]:
    """Yield the images of folders that hold a folder for each class.

    Images in nested folders belong to the class of the outermost one.
    """
    items = [source.path] if isinstance(source.path, str) else source.path
    for item in items:
        root = expanded(item)
        if not root.is_dir():
            siblings = root.parent.iterdir() if root.parent.is_dir() else ()
            hint = nearest(root.name, (p.name for p in siblings if p.is_dir()))
            raise UserError(f"{key}.path: no such folder: {item}{hint}")
        classes = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        if not classes:
            raise UserError(f"{key}.path: {item} holds no folder; each class needs a folder")
        for folder in classes:
            for path in _files_below(folder):
                yield Row(str(path), (str(path), folder.name))


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        # In place: os.walk descends into the folders that remain, in this order.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES):
                yield Path(parent) / name


def npz(source: Source, columns: Columns, key: str) -> Iterator[Row | BadRow]:
    """Yield the rows of npz files, each image encoded as a PNG.

    The arrays are pixels, uint8 [N, H, W] or [N, H, W, C], and labels, [N].
    """
    for path in source_files(source, key):
        message = f"{path}: not an npz file of plain arrays"
        with open_regular(path) as file:
            with library_errors(message):
                archive = zipfile.ZipFile(file)
                names = [name.removesuffix(".npy") for name in archive.namelist()]
            column_indices(names, columns, str(path))
            with library_errors(message):
                pixels, labels = (_NpyReader(archive, str(c)) for c in (columns[0], columns[-1]))
            _check_pixels(pixels, labels, columns, path)
            for row_number in range(pixels.shape[0]):
                place = f"{path}: row {row_number}"
                with library_errors(message):
                    image, label = pixels.next_row(), labels.next_row()[()]
                    name = _label_name(label)
                if is_not_finite(label):
                    yield BadRow(place, f"{columns[-1]!r} is {label}")
                else:
                    yield Row(place, (_png(image), name))
            with library_errors(message):
                pixels.check_end(), labels.check_end()


def _label_name(label: Any) -> str:
    return label.decode() if isinstance(label, bytes) else str(label)


def npz_arrays(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the shape and the dtype of each array in an npz file that can be read, by name.

    Raises:
        UserError: the file cannot be read, or none of its arrays.
    """
    message = f"{path}: not an npz file of plain arrays"
    arrays, problem = {}, None
    with open_regular(path) as file:
        with library_errors(message):
            archive = zipfile.ZipFile(file)
        for name in archive.namelist():
            try:
                with library_errors(message):
                    reader = _NpyReader(archive, name.removesuffix(".npy"))
            except UserError as error:  # a scalar, or Python objects
                problem = problem or error
                continue
            arrays[name.removesuffix(".npy")] = reader.shape, str(reader.dtype)
    if not arrays and problem is not None:
        raise problem
    return arrays


def npz_labels(source: Source, name: str, key: str) -> Iterator[str]:
    """Yield the values of an array [N] as the class names that `npz` gives, without the pixels.

    Args:
        source: the files.
        name: of the array.
        key: the source's key in the config, for errors.
    """
    for path in source_files(source, key):
        message = f"{path}: not an npz file of plain arrays"
        with open_regular(path) as file:
            with library_errors(message):
                labels = _NpyReader(zipfile.ZipFile(file), name)
            for _ in range(labels.shape[0]):
                with library_errors(message):
                    value = _label_name(labels.next_row()[()])
                yield value


class _NpyReader:
    """Reader of one array in an npz file, row by row: its header may declare any size.

    Attributes:
        shape: shape of the array, [N, ...].
        dtype: type of its elements.

    Raises:
        ValueError: the array holds objects, is too large or is stored column by column.
    """

    def __init__(self, archive: zipfile.ZipFile, name: str):
        from numpy.lib import format as npy

        self._file = archive.open(f"{name}.npy")
        version = npy.read_magic(self._file)
        # Version 3.0 is for structured arrays whose field names are not Latin-1.
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name}: version {version} of the format")
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        self.shape, fortran_order, self.dtype = read_header(self._file)
        self._row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        # Objects are pickles, which can run any code when they are read.
        if self.dtype.hasobject:
            raise ValueError(f"{name} holds Python objects")
        if not self.shape or min(self.shape) < 0 or self._row_bytes > MAX_ROW_BYTES:
            raise ValueError(f"{name} has the shape {list(self.shape)}")
        # The rows of such an array are not contiguous, so they cannot be read one by one.
        if fortran_order and len(self.shape) > 1:
            raise ValueError(f"{name} is stored column by column; save np.ascontiguousarray of it")

    def next_row(self) -> Any:
        """Return the next row, an array of `shape[1:]`."""
        import numpy as np

        content = self._file.read(self._row_bytes)
        if len(content) < self._row_bytes:
            raise EOFError("it is cut off")
        return np.ndarray(self.shape[1:], self.dtype, content)

    def check_end(self) -> None:
        """Read to the end of the file, where zipfile compares the checksum."""
        self._file.read(1)


def _check_pixels(pixels: _NpyReader, labels: _NpyReader, columns: Columns, path: Path) -> None:
    if pixels.shape[0] != labels.shape[0] or len(pixels.shape) not in (3, 4) or labels.shape[1:]:
        raise UserError(
            f"{path}: {columns[0]} must be [N, H, W] or [N, H, W, C] and {columns[-1]} [N]. "
            f"Received: {list(pixels.shape)} and {list(labels.shape)}"
        )
    if pixels.dtype.str != "|u1":
        raise UserError(
            f"{path}: {columns[0]} must be uint8, from 0 to 255. Received: {pixels.dtype}"
        )
    if 0 in pixels.shape[1:3] or (len(pixels.shape) == 4 and pixels.shape[-1] not in (1, 3, 4)):
        raise UserError(
            f"{path}: {columns[0]} must have pixels of 1, 3 or 4 channels. "
            f"Received: {list(pixels.shape)}"
        )


def _png(pixels: Any) -> bytes:
    import tensorflow as tf

    return tf.io.encode_png(pixels[..., None] if pixels.ndim == 2 else pixels).numpy()
