"""From the section `data` to the three splits, with one list of class names for all."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tfft.config import Config, DataConfig, Fraction, Source
from tfft.config.data import check_labels, look_alike, shown
from tfft.data import images, sources, texts
from tfft.data.prepared import Request, default_cache
from tfft.data.splits import Dataset, stratified
from tfft.preprocess import ImageInputs, Inputs
from tfft.utils import console
from tfft.utils.errors import UserError, nearest
from tfft.utils.reading import expanded, is_file, read_text

MISSING = ("nan", "null", "n/a", "<na>", "nat")  # how programs write a value that is not there


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


@dataclass(frozen=True)
class DatasetSettings:
    """What the rest of a config wants of its data.

    Attributes:
        seed: of the splits.
        labels: that a checkpoint gives; they come before the config's.
        several: whether a row may have several labels, or none.
        whole: whether pictures are needed whole, and not at the model's size alone.
    """

    seed: int = 0
    labels: Sequence[str] | None = None
    multi_label: bool = False
    whole: bool = False

    @classmethod
    def of(cls, config: Config, labels: Sequence[str] | None = None) -> "DatasetSettings":
        """What a config wants."""
        whole = config.augmentation.crop is not None
        return cls(config.train.seed, labels, config.task.multi_label, whole)


def build(config: DataConfig, inputs: Inputs, want: DatasetSettings) -> Datasets:
    """Prepare every split.

    The test split is held out first, then validation; neither is used to choose the classes.

    Raises:
        UserError: a row is malformed, a label is unknown, or there is only one class.
    """
    made = _Build(config, inputs, want)
    prepared = made.prepare("train", config.train)
    names = tuple(want.labels or _given_labels(config) or prepared.names)
    train = made.dataset(prepared, names, "train", config.train)
    splits: dict[str, Dataset | None] = {}
    for key in ("test", "validation"):
        given = getattr(config, key)
        if isinstance(given, Source):
            splits[key] = made.dataset(made.prepare(key, given), names, key, given)
        elif isinstance(given, Fraction):
            seed = want.seed if given.seed is None else given.seed
            kept, held = stratified(train.labels, given.fraction, seed)
            splits[key] = None
            if len(held):
                splits[key], train = train.take(held), train.take(kept)
            else:
                console.log(f"data.{key}: no class has two rows, of which one could be held out")
        else:
            splits[key] = None
    if len(names) < 2 - want.multi_label:
        raise UserError(f"data.label: at least two classes are needed; found {list(names)}")
    result = Datasets(train, splits["validation"], splits["test"], names)
    _tell(result)
    for name in names:
        if name.strip().lower() in MISSING:
            place = made.place_of(name, "train", config.train)
            console.log(f"{place}: label {name!r} is a class; is it a missing value?")
    return result


def of_source(
    config: DataConfig, key: str, source: Source, inputs: Inputs, want: DatasetSettings
) -> Dataset:
    """One split of known classes (`want.labels`), for evaluation alone."""
    made = _Build(config, inputs, want)
    return made.dataset(made.prepare(key, source), tuple(want.labels or ()), key, source)


def columns(config: DataConfig, inputs: Inputs) -> tuple[str | int, ...]:
    """The columns that are read: a picture, a text or a pair of them, and the label last."""
    given = {"image": config.image, "text": config.text, "text_pair": config.text_pair}
    return (*(given[name] for name in inputs.columns), config.label)


def request(
    config: DataConfig, key: str, source: Source, inputs: Inputs, multi_label: bool
) -> Request:
    """What is asked of a source."""
    separator = config.label_separator if multi_label else None
    return Request(source, columns(config, inputs), f"data.{key}", config.on_bad_row, separator)


def read(asked: Request, inputs: Inputs) -> Iterator[sources.Row | sources.BadRow]:
    """The rows of a source, not looked at any further."""
    if isinstance(inputs, ImageInputs):
        return images.read(asked)
    return sources.read(asked.source, asked.columns, asked.key, asked.separator is not None)


@dataclass(frozen=True)
class _Build:
    config: DataConfig
    inputs: Inputs
    want: DatasetSettings

    def prepare(self, key: str, source: Source) -> texts.Tokens | images.Pictures:
        asked = request(self.config, key, source, self.inputs, self.want.multi_label)
        cache = default_cache(self.config.cache_dir)
        if not isinstance(self.inputs, ImageInputs):
            return texts.prepare(asked, self.inputs, cache)
        keep = self.config.cache_images
        if keep == "auto" and self.want.whole and key == "train":
            keep = False
        return images.prepare(asked, self.inputs, cache, keep)

    def dataset(
        self,
        prepared: texts.Tokens | images.Pictures,
        names: tuple[str, ...],
        key: str,
        source: Source,
    ) -> Dataset:
        self._check_alike(prepared.names, key, source)
        ids = {name: i for i, name in enumerate(names)}
        # A number that is no name itself is an index into the names.
        given = self.config.labels is not None
        indices = {str(i): i for i in range(len(names))} if given else {}
        table = np.array([ids.get(n, indices.get(n, -1)) for n in prepared.names], np.int32)
        if (table < 0).any():
            unknown = prepared.names[int(np.flatnonzero(table < 0)[0])]
            raise UserError(
                f"{self.place_of(unknown, key, source)}: label {unknown!r} is not a class"
                f"{nearest(unknown, names)}"
            )
        rows = np.arange(prepared.rows)
        if not self.want.multi_label:
            return Dataset(prepared, rows, table[prepared.labels])
        labels = np.zeros((prepared.rows, len(names)), np.float32)
        labels[prepared.label_rows, table[prepared.labels]] = 1
        return Dataset(prepared, rows, labels)

    def _check_alike(self, names: Sequence[str], key: str, source: Source) -> None:
        """Labels that look the same must be the same.

        Raises:
            UserError: two differ in spaces or in how their letters are composed alone.
        """
        if (pair := look_alike(names)) is not None:
            first, second = (self.place_of(name, key, source) for name in pair)
            raise UserError(
                f"{second}: label {shown(pair[1])} differs from {shown(pair[0])} ({first}) in "
                "spaces or in Unicode's form (NFC, NFD) alone; write both the same"
            )

    def place_of(self, label: str, key: str, source: Source) -> str:
        """Where a label stands first; read again, as only what is wrong asks for it."""
        asked = request(self.config, key, source, self.inputs, self.want.multi_label)
        for row in read(asked, self.inputs):
            if isinstance(row, sources.Row) and label in asked.labels(row.values[-1]):
                return row.place
        return f"data.{key}"


def _given_labels(config: DataConfig) -> list[str] | None:
    if not isinstance(config.labels, str):
        return config.labels
    path = expanded(config.labels)
    if not is_file(path):
        raise UserError(f"data.labels: no such file: {path}")
    names = [name.strip() for name in read_text(path).splitlines() if name.strip()]
    try:
        check_labels(names)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return names


def _tell(datasets: Datasets) -> None:
    sizes = [f"{len(datasets.train):,} train"]
    for name in ("validation", "test"):
        split = getattr(datasets, name)
        sizes.append(f"{len(split):,} {name}" if split is not None else f"no {name}")
    multi_label = datasets.train.labels.ndim == 2
    kind = "labels, of which a row may have several" if multi_label else "classes"
    console.log(f"data: {', '.join(sizes)}; {len(datasets.labels)} {kind}")
    if 2 * len(datasets.labels) > len(datasets.train) and len(datasets.train) > 20:
        console.log("data: there are hardly more training rows than labels; is data.label right?")
    for prepared in {id(s.prepared): s.prepared for s in datasets.given()}.values():
        if prepared.bad:
            console.log(
                f"data: {prepared.bad} bad rows skipped, the first: {prepared.bad_listed[0]}"
            )
        if prepared.cut:
            console.log(
                f"data: {prepared.cut:,} of {prepared.rows:,} rows "
                f"({prepared.cut / prepared.rows:.1%}) are cut at max_length"
            )
