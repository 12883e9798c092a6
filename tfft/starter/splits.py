"""Find the validation and test data beside the training data, and check that they fit."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tfft.config import DataConfig, Source
from tfft.data import array_files, sources
from tfft.data.kinds import KINDS
from tfft.data.records import BadRow, Row
from tfft.starter import head as heads
from tfft.starter import labels, questions, tagged
from tfft.starter.head import Head
from tfft.starter.roles import Roles, listed, shown_name
from tfft.utils.errors import UserError
from tfft.utils.reading import expanded, is_file, printable

_MOST_NUMBERS = 0.5  # share of the labels of a split that must be numbers to predict
NAMES = {"validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
_TRAIN = re.compile(r"(?<![a-z])train(ing)?(?![a-z])", re.IGNORECASE)


def training(source: Source) -> Source:
    """Return the training part of a source: the folder `train` of a folder, a TFDS split."""
    if source.source == "images" and isinstance(source.path, str):
        folder = expanded(source.path) / "train"
        if folder.is_dir() and any(path.is_dir() for path in folder.iterdir()):
            return source.model_copy(update={"path": f"{source.path}train/"})
    if source.source == "tfds" and source.split is None:
        builder = array_files.tfds_builder(source, "data.train")
        if builder.info.splits and "train" not in builder.info.splits:
            split = max(builder.info.splits.values(), key=lambda s: s.num_examples).name
            return source.model_copy(update={"split": split})
    return source


def beside(source: Source, role: str) -> Source | None:
    """Return the data of a split that lie beside the training data, None if there are none.

    They are `reviews_test.csv` for `reviews.csv`, `test.csv` for `train.csv`, the folder `test` for
    the folder `train`, or a split of the same TFDS set.

    Args:
        source: the training data.
        role: `validation` or `test`.
    """
    if source.source == "tfds":
        splits = array_files.tfds_builder(source, "data.train").info.splits or {}
        name = next((name for name in NAMES[role] if name in splits), None)
        return None if name is None else source.model_copy(update={"split": name})
    if not isinstance(source.path, str):
        return None
    for path in _candidates(source, role):
        exists = os.path.isdir if source.source == "images" else is_file
        if exists(expanded(path)):
            end = "/" if source.source == "images" else ""
            return source.model_copy(update={"path": f"{path}{end}"})
    return None


def _candidates(source: Source, role: str) -> Iterator[Path]:
    path = Path(str(source.path))
    for name in NAMES[role]:
        if _TRAIN.search(path.name):
            yield path.with_name(_TRAIN.sub(name, path.name))
        elif source.source != "images":
            for sign in "_-.":
                yield path.with_name(f"{path.stem}{sign}{name}{path.suffix}")


def mismatch(
    source: Source, roles: Roles, head: Head, counts: Counter[str], key: str
) -> str | None:
    """Return why a source cannot be a split beside the training rows, None if it can.

    Args:
        source: the split.
        roles: the columns of the training rows.
        head: the first training rows.
        counts: their classes, or types of entities.
        key: the split's key in the config, for errors.
    """
    try:
        other = heads.read(source, key, head.header, roles.image)
    except UserError as error:
        return str(error).removeprefix(f"{key}: ")
    missing = [name for name in roles.columns if other.column(name) is None]
    if missing:
        return f"it has no column {listed(missing)}"
    if roles.targets == "answers":
        has_answer = other.total is None or count(source, other, roles, key)[questions.ANSWER]
        return None if has_answer else "it has no answers"
    column = other.column(roles.label)
    is_read = column is not None and (column.lists if roles.targets == "tags" else column.texts)
    if column is None or not (is_read or column.classes):
        return "it has no labels"
    if roles.targets == "numbers":
        share = labels.number_share(column.texts)
        return None if share > _MOST_NUMBERS else "its labels are not numbers"
    try:
        unknown = set(count(source, other, roles, key)) - set(counts)
    except UserError as error:
        return str(error)
    if head.complete and unknown:
        return f"its label {shown_name(sorted(unknown)[0])} is not a class of the training rows"
    return None


def count(source: Source, head: Head, roles: Roles, key: str) -> Counter[str]:
    """Return the rows of each class, the entities of each type, or the rows with an answer.

    Numbers are not counted. Classes that the source declares are among them without rows.

    Args:
        source: of the rows.
        head: the first of them.
        roles: their columns.
        key: the source's key in the config, for errors.

    Raises:
        UserError: the tags of words are of no scheme.
    """
    if roles.targets == "numbers":
        return Counter()
    if roles.targets == "tags":
        return tagged.count_types(tagged.read(source, roles.columns, key), roles.labels)
    if roles.targets == "answers" and roles.context is not None:
        return questions.count(head, roles.context, roles.label)
    column = head.column(roles.label)
    counts = labels.count(column.texts if column else [], roles.separator)
    for label in column.classes if column else ():
        counts[label] += 0
    return counts


def bad_rows(source: Source, roles: Roles, key: str) -> list[BadRow]:
    """Return the first rows that training could not use; none for pixels, which are not decoded."""
    if source.source in ("npz", "images") or (source.source == "tfds" and roles.image is not None):
        return []
    if source.source == "tfds" and not array_files.tfds_builder(source, key).is_prepared():
        return []
    config = DataConfig(train=source, label_separator=roles.separator or "|")
    rows = sources.read(source, roles.columns, key, KINDS[roles.targets](config))
    if roles.image is not None:
        rows = map(_check_image, sources.with_image_paths(rows))
    return [row for row in islice(rows, heads.ROWS) if isinstance(row, BadRow)]


def _check_image(row: Row | BadRow) -> Row | BadRow:
    if isinstance(row, BadRow) or is_file(Path(row.values[0])):
        return row
    return BadRow(row.place, f"no such image: {printable(row.values[0])}")
