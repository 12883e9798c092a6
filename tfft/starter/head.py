"""Read the first rows of a source with all of its columns, by the readers that training uses.

Of folders of images all names are read: their order is that of the classes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tfft.config import Source
from tfft.data import array_files, conll, squad, text_files
from tfft.data.records import BadRow, Row, row_from_mapping, source_files, with_texts
from tfft.starter import header
from tfft.utils.errors import UserError
from tfft.utils.reading import MIB

Name = str | int
ROWS = 2_000  # of a source are looked at
CHARACTERS = 32 * MIB  # in these rows, at most: a cell may be long


@dataclass(frozen=True)
class Column:
    """A column of the first rows.

    Attributes:
        name: the name, or the number in a file without a header; the last of CoNLL files is -1.
        values: a text for each row, None where the row has none.
        is_image: whether the values are pixels or encoded images; `values` is empty then.
        classes: class names that the source itself declares.
        problem: why the first of the values that training cannot use is one, or None.
        lists: the list of each row, None where a row has none; empty if no row has one.
        item_names: names that the source declares for the numbers in the lists.
        objects: the object of each row, None where a row has none; empty if no row has one.
        is_answers: whether the source declares answers, texts with their starts.
    """

    name: Name
    values: Sequence[str | None] = ()
    is_image: bool = False
    classes: Sequence[str] = ()
    problem: str | None = None
    lists: Sequence[Sequence[Any] | None] = ()
    item_names: Sequence[str] = ()
    objects: Sequence[Mapping[str, Any] | None] = ()
    is_answers: bool = False

    @property
    def texts(self) -> list[str]:
        """The values that are not blank."""
        return [value for value in self.values if value and value.strip()]

    @property
    def nested(self) -> Sequence[Any]:
        """The lists, or the objects."""
        return self.lists or self.objects


@dataclass(frozen=True)
class Head:
    """The first rows of a source.

    Attributes:
        source: where they are from.
        columns: in the order of the source.
        rows: number of rows that were read.
        total: number of rows of the source, None if unknown; estimated unless `complete`.
        complete: whether the source has no other rows.
        header: whether the first row of a csv or tsv file names the columns; None: other formats.
        doubt: what about the header could not be decided, or None.
        image_size: the smaller side of the pixels of an npz file.
    """

    source: Source
    columns: Sequence[Column]
    rows: int
    total: int | None
    complete: bool
    header: bool | None = None
    doubt: str | None = None
    image_size: int | None = None

    def column(self, name: Name) -> Column | None:
        """Return the column of a name or number, None if there is none."""
        return next((column for column in self.columns if column.name == name), None)


def read(
    source: Source, key: str, has_header: bool | None = None, image: Name | None = None
) -> Head:
    """Return the first rows of a source.

    Args:
        source: the data.
        key: the source's key in the config, for errors.
        has_header: whether a csv or tsv file has a header; None: decide it by the rows.
        image: the array of pixels in an npz file; None: choose it.

    Raises:
        UserError: the source cannot be read or has no rows.
    """
    if source.source in ("csv", "tsv"):
        head = _delimited(source, key, has_header)
    elif source.source == "npz":
        head = _npz(source, key, image)
    else:
        readers = {
            "jsonl": _jsonl,
            "parquet": _parquet,
            "images": _images,
            "conll": _conll,
            "squad": _squad,
        }
        head = readers.get(source.source, _tfds)(source, key)
    if head.rows == 0 and source.source != "tfds":  # which may not be downloaded yet
        raise UserError(f"{key}: {source.path} holds no row that can be read{_reason(source, key)}")
    return head


def _reason(source: Source, key: str) -> str:
    """Return why the first row of a text file cannot be read, to append to an error message."""
    rows: Iterator[Any] = iter(())
    if source.source == "jsonl":
        rows = (record for _, record in text_files.json_records(source, key))
    elif source.source in ("csv", "tsv"):
        rows = text_files.delimited(source, (0,), key)
    elif source.source == "conll":
        rows = conll.conll(source, conll.TOKEN_AND_TAG, key)
    elif source.source == "squad":
        rows = squad.read(source, key)
    bad = next((row for row in rows if isinstance(row, BadRow)), None)
    return "" if bad is None else f": {bad.place}: {bad.reason}"


def _delimited(source: Source, key: str, has_header: bool | None) -> Head:
    cells = text_files.first_cells(source, key)
    numbers = range(len(cells))
    items, complete = _start(text_files.delimited(source, numbers, key), ROWS + 1)
    rows = [_cells(item) for item in items if isinstance(item, Row)]
    blank = tuple(cell or None for cell in cells)
    others = [row for row in rows if row != blank]  # several files have a header each
    doubt = None
    if has_header is None:
        has_header, doubt = header.is_header(cells, others)
    rows = others if has_header else rows
    complete, rows = complete and len(rows) <= ROWS, rows[:ROWS]
    names: Sequence[Name] = cells if has_header else numbers
    total = len(rows) if complete else _estimated_rows(source, key, items[-1].place, len(items))
    columns = [Column(name, [row[index] for row in rows]) for index, name in enumerate(names)]
    return Head(source, columns, len(rows), total, complete, has_header, doubt)


def _jsonl(source: Source, key: str) -> Head:
    items, complete = _start(text_files.json_records(source, key), ROWS)
    objects = [record for _, record in items if not isinstance(record, BadRow)]
    names = list(dict.fromkeys(name for record in objects for name in record))
    columns = [
        _column(name, [row_from_mapping(record, (name,), "") for record in objects])
        for name in names
    ]
    total = len(items) if complete else _estimated_rows(source, key, items[-1][0], len(items))
    return Head(source, columns, len(objects), total, complete)


def _parquet(source: Source, key: str) -> Head:
    names, total = array_files.parquet_columns(source, key)
    values = [_start(array_files.parquet(source, (name,), key), ROWS)[0] for name in names]
    rows = min(map(len, values), default=min(total, ROWS))
    item_names = array_files.parquet_item_names(source, key)
    columns = [
        _column(name, items[:rows], item_names.get(name, ()))
        for name, items in zip(names, values, strict=True)
    ]
    return Head(source, columns, rows, total, rows == total)


def _conll(source: Source, key: str) -> Head:
    # The last column has the name that the config has for it.
    names = (*range(conll.width(source, key) - 1), -1)
    items, complete = _start(conll.conll(source, names, key), ROWS)
    rows = [item for item in items if isinstance(item, Row)]
    columns = [
        _column(name, [Row(row.place, (row.values[index],)) for row in rows])
        for index, name in enumerate(names)
    ]
    total = len(rows) if complete else _estimated_rows(source, key, items[-1].place, len(items))
    return Head(source, columns, len(rows), total, complete)


def _squad(source: Source, key: str) -> Head:
    names = ("id", "question", "context", "answers")
    rows = squad.rows(source, names, key)
    items, complete = _start(rows, ROWS)
    # All are counted: a JSON file is parsed at once. `_start` has drawn one of the others.
    total = len(items) if complete else len(items) + 1 + sum(1 for _ in rows)
    good = [item for item in items if isinstance(item, Row)]
    columns = [
        _column(name, [Row(row.place, (row.values[index],)) for row in good])
        for index, name in enumerate(names)
    ]
    return Head(source, columns, len(good), total, complete)


def _npz(source: Source, key: str, image: Name | None) -> Head:
    files = [array_files.npz_arrays(path) for path in source_files(source, key)]
    pixels = _pixels(files[0], image, source)
    shape, _ = files[0][pixels]
    total = sum(arrays[pixels][0][0] for arrays in files if pixels in arrays)
    names = [name for name, (other, _) in files[0].items() if other == shape[:1]]
    labels = _npz_labels(source, key, sorted(names, key=_is_not_train))
    columns = [Column(pixels, is_image=True), *labels]
    size = min(shape[1:3])
    return Head(source, columns, min(total, ROWS), total, total <= ROWS, image_size=size)


def _npz_labels(source: Source, key: str, names: Iterable[str]) -> list[Column]:
    """Return the arrays of labels that can be read.

    Raises:
        UserError: there are arrays, but none can be read.
    """
    columns, problem = [], None
    for name in names:
        try:
            values = list(islice(array_files.npz_labels(source, name, key), ROWS))
            columns.append(Column(name, values))
        except UserError as error:  # such as an array that is cut off
            problem = error
    if not columns and problem is not None:
        raise problem
    return columns


def _pixels(
    arrays: Mapping[str, tuple[Sequence[int], str]], image: Name | None, source: Source
) -> str:
    """Return the name of the array of pixels: the given one, or one for training if it says so."""
    names = [n for n, (shape, dtype) in arrays.items() if len(shape) in (3, 4) and dtype == "uint8"]
    if not names:
        listed = ", ".join(f"{n} {dtype} {list(shape)}" for n, (shape, dtype) in arrays.items())
        raise UserError(
            f"{source.path}: no array holds pixels, uint8 [N, H, W] or [N, H, W, C]. "
            f"Received: {listed[:300]}"
        )
    return str(image) if image in names else min(names, key=_is_not_train)


def _is_not_train(name: str) -> bool:
    return "train" not in name.lower()


def _images(source: Source, key: str) -> Head:
    rows = array_files.images(source, ("image", "label"), key)
    labels = [row.values[1] for row in rows if isinstance(row, Row)]
    classes = list(dict.fromkeys(labels))
    columns = (Column("image", is_image=True), Column("label", labels, classes=classes))
    return Head(source, columns, len(labels), len(labels), True)


def _tfds(source: Source, key: str) -> Head:
    """Return the rows of a prepared TFDS set; of another the columns alone, without a download."""
    builder = array_files.tfds_builder(source, key)
    features = builder.info.features or {}
    classes = {name: list(getattr(f, "names", None) or ()) for name, f in features.items()}
    images = {name for name, f in features.items() if type(f).__name__ == "Image"}
    answers = {name for name, f in features.items() if array_files.are_answers(f)}
    names = [n for n, f in features.items() if n in answers or (n not in images and f.shape == ())]
    rows: list[tuple[Any, ...]] = []
    total = None
    if builder.is_prepared():
        split = source.split or "train"
        total = builder.info.splits[split].num_examples if split in builder.info.splits else None
        if names:
            items, _ = _start(array_files.tfds(source, names, key), ROWS)
            rows = [_cells(item) for item in items if isinstance(item, Row)]
    columns = [Column(name, is_image=True) for name in sorted(images)]
    for index, name in enumerate(names):
        values = [row[index] for row in rows]
        if name in answers:
            columns.append(Column(name, objects=values, is_answers=True))
        else:
            columns.append(Column(name, values, classes=classes[name]))
    return Head(source, columns, len(rows), total, total is not None and total <= ROWS)


def _start(items: Iterable[Any], limit: int) -> tuple[list[Any], bool]:
    """Return the first items, of `CHARACTERS` together, and whether there are no others."""
    start: list[Any] = []
    characters = 0
    for item in items:
        if len(start) == limit or characters > CHARACTERS:
            return start, False
        start.append(item)
        characters += len(str(item))
    return start, True


def _cells(row: Row) -> tuple[str | None, ...]:
    return tuple(value or None for value in row.values)


def _column(name: Name, items: Sequence[Row | BadRow], item_names: Sequence[str] = ()) -> Column:
    """Return the column of rows of one cell; a bad row is a missing value."""
    texts = [with_texts(item, (name,)) if isinstance(item, Row) else item for item in items]
    values = [_cells(item)[0] if isinstance(item, Row) else None for item in texts]
    problem = next((item.reason for item in texts if isinstance(item, BadRow)), None)
    cells = [item.values[0] if isinstance(item, Row) else None for item in items]
    lists = _of_type(cells, list | tuple)
    objects = _of_type(cells, Mapping)
    return Column(name, values, False, (), problem, lists, item_names, objects)


def _of_type(cells: Sequence[Any], kind: Any) -> list[Any]:
    """Return the cells of a type, None for the others; nothing if there are only others."""
    chosen = [cell if isinstance(cell, kind) else None for cell in cells]
    return [] if all(cell is None for cell in chosen) else chosen


def _estimated_rows(source: Source, key: str, last: str, rows: int) -> int:
    """Return the number of rows of all files, estimated by the bytes of those that were read.

    Args:
        source: the files.
        key: the source's key in the config, for errors.
        last: `FILE:LINE` of the last row that was read.
        rows: number of rows that were read, the last one included.
    """
    last_path, _, line = last.rpartition(":")
    paths = source_files(source, key)
    before = paths[: list(map(str, paths)).index(last_path)]
    size = sum(path.stat().st_size for path in before)
    size += text_files.size_of_lines(Path(last_path), source.encoding, int(line) - 1)
    all_sizes = sum(path.stat().st_size for path in paths)
    return max(rows, round((rows - 1) * all_sizes / max(1, size)))
