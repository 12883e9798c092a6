"""From the section `data` to the three splits, with one list of class names for all."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfft import log
from tfft.config import DataConfig, Fraction, Source
from tfft.data import sources
from tfft.data.prepare import Prepared, Request, default_cache, prepare
from tfft.data.split import Dataset, stratified
from tfft.errors import UserError, nearest
from tfft.preprocess import TextInputs


@dataclass(frozen=True)
class Datasets:
    """The splits of a run and the names of the classes, in the order of their ids."""

    train: Dataset
    validation: Dataset | None
    test: Dataset | None
    labels: tuple[str, ...]

    @property
    def bad_rows(self) -> list[str]:
        """The rows that were skipped, as far as they were listed."""
        sets = {id(s.prepared): s.prepared for s in self.given()}
        return [line for prepared in sets.values() for line in prepared.bad_listed]

    def given(self) -> list[Dataset]:
        """The splits that there are."""
        return [s for s in (self.train, self.validation, self.test) if s is not None]


def build(
    config: DataConfig, inputs: TextInputs, seed: int, labels: Sequence[str] | None = None
) -> Datasets:
    """Prepare every split; `labels` given here (by a checkpoint) come before the config's.

    The test split is held out first, then validation; neither is used to choose the classes.

    Raises:
        UserError: a row is malformed, a label is unknown, or there is only one class.
    """
    prepared = {"train": _prepare(config, "train", config.train, inputs)}
    names = tuple(labels or _given_labels(config) or prepared["train"].names)
    train = _dataset(prepared["train"], names, config, "train")
    splits: dict[str, Dataset | None] = {}
    for key in ("test", "validation"):
        given = getattr(config, key)
        if isinstance(given, Source):
            splits[key] = _dataset(_prepare(config, key, given, inputs), names, config, key)
        elif isinstance(given, Fraction):
            kept, held = stratified(train.labels, given.fraction, seed)
            splits[key], train = train.take(held), train.take(kept)
        else:
            splits[key] = None
    if len(names) < 2:
        raise UserError(f"data.label: at least two classes are needed; found {list(names)}")
    result = Datasets(train, splits["validation"], splits["test"], names)
    _tell(result)
    return result


def of_source(
    config: DataConfig, key: str, source: Source, inputs: TextInputs, labels: Sequence[str]
) -> Dataset:
    """One split of known classes, for evaluation alone."""
    return _dataset(_prepare(config, key, source, inputs), tuple(labels), config, key)


def columns(config: DataConfig) -> tuple[str | int, ...]:
    """The columns that are read: text, its pair where there is one, and the label last."""
    given = (config.text, config.text_pair, config.label)
    return tuple(column for column in given if column is not None)


def _prepare(config: DataConfig, key: str, source: Source, inputs: TextInputs) -> Prepared:
    request = Request(source, columns(config), f"data.{key}", config.on_bad_row)
    return prepare(request, inputs, default_cache(config.cache_dir))


def _given_labels(config: DataConfig) -> list[str] | None:
    if not isinstance(config.labels, str):
        return config.labels
    path = Path(config.labels).expanduser()
    if not path.is_file():
        raise UserError(f"data.labels: no such file: {path}")
    try:
        names = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"data.labels: {path} is not UTF-8 text") from None
    names = [name.strip() for name in names if name.strip()]
    if len(set(names)) < max(2, len(names)):
        raise UserError(f"data.labels: {path} must hold at least two different names, one a line")
    return names


def _dataset(prepared: Prepared, names: tuple[str, ...], config: DataConfig, key: str) -> Dataset:
    ids = {name: i for i, name in enumerate(names)}
    # A number that is no name itself is an index into the names.
    indices = {str(i): i for i in range(len(names))} if config.labels is not None else {}
    table = np.array([ids.get(n, indices.get(n, -1)) for n in prepared.names], np.int32)
    if (table < 0).any():
        unknown = prepared.names[int(np.flatnonzero(table < 0)[0])]
        raise UserError(
            f"{_place_of(unknown, config, key)}: label {unknown!r} is not a class"
            f"{nearest(unknown, names)}"
        )
    return Dataset(prepared, np.arange(prepared.rows), table[prepared.labels])


def _place_of(label: str, config: DataConfig, key: str) -> str:
    """Where a label stands first; read anew, as only an error asks for it."""
    for row in sources.read(getattr(config, key), columns(config), f"data.{key}"):
        if isinstance(row, sources.Row) and row.values[-1] == label:
            return row.place
    return f"data.{key}"


def _tell(datasets: Datasets) -> None:
    sizes = [f"{len(datasets.train):,} train"]
    for name in ("validation", "test"):
        split = getattr(datasets, name)
        sizes.append(f"{len(split):,} {name}" if split is not None else f"no {name}")
    log.say(f"data: {', '.join(sizes)}; {len(datasets.labels)} classes")
    for prepared in {id(s.prepared): s.prepared for s in datasets.given()}.values():
        if prepared.bad:
            log.say(f"data: {prepared.bad} bad rows skipped, the first: {prepared.bad_listed[0]}")
        if prepared.cut:
            log.say(
                f"data: {prepared.cut:,} of {prepared.rows:,} rows "
                f"({prepared.cut / prepared.rows:.1%}) are cut at max_length"
            )
