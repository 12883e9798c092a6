"""Read the first rows of a source with all of its columns, by the readers that training uses."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tfft.config import Source
from tfft.data import array_files, text_files
from tfft.data.records import BadRow, Row, row_from_mapping, source_files
from tfft.starter import header
from tfft.utils.errors import UserError
from tfft.utils.reading import MIB, open_regular

ROWS = 2_000  # of a source are looked at
CHARACTERS = 32 * MIB  # in these rows, at most: a cell may be long
LISTED_IMAGES = 200_000  # of folders: the images are in the order of their classes
_SAMPLE = MIB  # bytes of a file from which its number of lines is estimated


@dataclass(frozen=True)
class Column:
    """A column of the first rows.

    Attributes:
        name: the name, or the number in a file without a header.
        values: a text for each row, None where the row has none.
        is_image: whether the values are pixels or encoded images; `values` is empty then.
        classes: class names that the source itself declares.
    """

    name: str | int
    values: Sequence[str | None] = ()
    is_image: bool = False
    classes: Sequence[str] = ()

    @property
    def texts(self) -> list[str]:
        """The values that are not blank."""
        return [value for value in self.values if value and value.strip()]


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
        image_size: height of the pixels of an npz file.
    """

    source: Source
    columns: Sequence[Column]
    rows: int
    total: int | None
    complete: bool
    header: bool | None = None
    doubt: str | None = None
    image_size: int | None = None

    def column(self, name: str | int) -> Column | None:
        """Return the column of a name or number, None if there is none."""
        return next((column for column in self.columns if column.name == name), None)


def read(source: Source, key: str, has_header: bool | None = None) -> Head:
    """Return the first rows of a source.

    Args:
        source: the data.
        key: the source's key in the config, for errors.
        has_header: whether a csv or tsv file has a header; None: decide it by the rows.

    Raises:
        UserError: the source cannot be read or has no rows.
    """
    if source.source in ("csv", "tsv"):
        head = _delimited(source, key, has_header)
    else:
        readers = {"jsonl": _jsonl, "parquet": _parquet, "npz": _npz, "images": _images}
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
    bad = next((row for row in rows if isinstance(row, BadRow)), None)
    return "" if bad is None else f": {bad.place}: {bad.reason}"


def _delimited(source: Source, key: str, has_header: bool | None) -> Head:
    cells = text_files.first_cells(source, key)
    numbers = range(len(cells))
    rows, complete = _take(text_files.delimited(source, numbers, key), len(cells), ROWS + 1)
    blank = tuple(cell or None for cell in cells)
    others = [row for row in rows if row != blank]  # several files have a header each
    doubt = None
    if has_header is None:
        has_header, doubt = header.is_header(cells, others)
    rows = others if has_header else rows
    complete, rows = complete and len(rows) <= ROWS, rows[:ROWS]
    names: Sequence[str | int] = cells if has_header else numbers
    total = len(rows) if complete else _estimated_lines(source, key)
    return Head(source, _columns(names, rows), len(rows), total, complete, has_header, doubt)


def _jsonl(source: Source, key: str) -> Head:
    records = [record for _, record in islice(text_files.json_records(source, key), ROWS + 1)]
    complete, records = len(records) <= ROWS, records[:ROWS]
    objects = [record for record in records if not isinstance(record, BadRow)]
    names = list(dict.fromkeys(name for record in objects for name in record))
    columns = [Column(name, [_cell(record, name) for record in objects]) for name in names]
    total = len(records) if complete else _estimated_lines(source, key)
    return Head(source, columns, len(objects), total, complete)


def _cell(record: dict[str, Any], name: str) -> str | None:
    row = row_from_mapping(record, (name,), "")
    return row.values[0] if isinstance(row, Row) else None


def _parquet(source: Source, key: str) -> Head:
    names, total = array_files.parquet_columns(source, key)
    columns = []
    for name in names:
        rows, _ = _take(array_files.parquet(source, (name,), key), 1, ROWS)
        columns.append(Column(name, [row[0] for row in rows]))
    return Head(source, columns, min(total, ROWS), total, total <= ROWS)


def _npz(source: Source, key: str) -> Head:
    arrays = array_files.npz_arrays(source, key)
    columns, total, size = [], 0, None
    for name, (shape, dtype) in arrays.items():
        if len(shape) in (3, 4) and dtype == "uint8":
            columns.append(Column(name, is_image=True))
            total, size = shape[0], min(shape[1:3])
        elif len(shape) == 1:
            values = islice(array_files.npz_labels(source, name, key), ROWS)
            columns.append(Column(name, list(values)))
    if size is None:
        listed = ", ".join(f"{n} {dtype} {list(shape)}" for n, (shape, dtype) in arrays.items())
        raise UserError(
            f"{source.path}: no array holds pixels, uint8 [N, H, W] or [N, H, W, C]. "
            f"Received: {listed[:300]}"
        )
    return Head(source, columns, min(total, ROWS), total, total <= ROWS, image_size=size)


def _images(source: Source, key: str) -> Head:
    found_rows = islice(array_files.images(source, ("image", "label"), key), LISTED_IMAGES)
    labels = [row.values[1] for row in found_rows if isinstance(row, Row)]
    classes = list(dict.fromkeys(labels))
    columns = (Column("image", is_image=True), Column("label", labels, classes=classes))
    return Head(source, columns, len(labels), len(labels), len(labels) < LISTED_IMAGES)


def _tfds(source: Source, key: str) -> Head:
    """Return the rows of a prepared TFDS set; of another the columns alone, without a download."""
    builder = array_files.tfds_builder(source, key)
    features = builder.info.features or {}
    classes = {name: list(getattr(f, "names", None) or ()) for name, f in features.items()}
    images = {name for name, f in features.items() if type(f).__name__ == "Image"}
    names = [name for name, f in features.items() if name not in images and f.shape == ()]
    rows: list[tuple[Any, ...]] = []
    total = None
    if builder.is_prepared():
        split = source.split or "train"
        total = builder.info.splits[split].num_examples if split in builder.info.splits else None
        if names:
            rows, _ = _take(array_files.tfds(source, names, key), len(names), ROWS)
    columns = [Column(name, is_image=True) for name in sorted(images)]
    for index, name in enumerate(names):
        columns.append(Column(name, [row[index] for row in rows], classes=classes[name]))
    return Head(source, columns, len(rows), total, total is not None and total <= ROWS)


def _take(
    items: Iterable[Row | BadRow], width: int, limit: int
) -> tuple[list[tuple[str | None, ...]], bool]:
    """Return the cells of the first rows, and whether there are no others.

    A bad row that a reader gives for a single column is a missing value of it; a bad row of several
    columns is left out.
    """
    rows: list[tuple[str | None, ...]] = []
    characters = 0
    for number, item in enumerate(items):
        if number == limit or characters > CHARACTERS:
            return rows, False
        if isinstance(item, Row):
            rows.append(tuple(value or None for value in item.values))
            characters += sum(map(len, item.values))
        elif width == 1:
            rows.append((None,))
    return rows, True


def _columns(names: Sequence[str | int], rows: Sequence[Sequence[str | None]]) -> list[Column]:
    return [Column(name, [row[index] for row in rows]) for index, name in enumerate(names)]


def _estimated_lines(source: Source, key: str) -> int:
    """Return the number of lines of all files, estimated from the start of each."""
    return round(sum(_lines_of_files(source, key)))


def _lines_of_files(source: Source, key: str) -> Iterator[float]:
    for path in source_files(source, key):
        with open_regular(path) as file:
            sample = file.read(_SAMPLE)
        if sample:
            yield max(1, sample.count(b"\n")) * path.stat().st_size / len(sample)
