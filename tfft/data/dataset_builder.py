"""Build the three splits from the section `data`, with one list of class names for all."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tfft.config import Config, DataConfig, Fraction, Source
from tfft.config.data import check_labels, format_label, look_alike
from tfft.data import images, sources, texts
from tfft.data.prepared import Request, default_cache
from tfft.data.splits import Dataset, stratified
from tfft.preprocess import ImageInputs, Inputs
from tfft.utils import console
from tfft.utils.errors import UserError, nearest
from tfft.utils.reading import expanded, is_file, read_text

MISSING_VALUES = ("nan", "null", "n/a", "<na>", "nat")  # how programs write a missing value


@dataclass(frozen=True)
class Datasets:
    """The splits of a run and the names of the classes.

    Attributes:
        train: always present.
        validation: None without one.
        test: None without one.
        labels: class names in the order of their ids.
    """

    train: Dataset
    validation: Dataset | None
    test: Dataset | None
    labels: tuple[str, ...]

    @property
    def bad_rows(self) -> list[str]:
        """The skipped rows with their reasons, as far as they were listed."""
        prepared_sets = {id(s.prepared): s.prepared for s in self.splits()}
        return [line for prepared in prepared_sets.values() for line in prepared.bad_listed]

    def splits(self) -> list[Dataset]:
        """Return the splits that exist: train, validation, test."""
        return [s for s in (self.train, self.validation, self.test) if s is not None]


@dataclass(frozen=True)
class DatasetSettings:
    """What the other sections of a config require of the data.

    Attributes:
        seed: of the splits.
        labels: class names of a checkpoint; they take precedence over the config's.
        multi_label: whether a row may have several labels, or none.
        full_images: whether images are needed at full size, not only at the model's size.
    """

    seed: int = 0
    labels: Sequence[str] | None = None
    multi_label: bool = False
    full_images: bool = False

    @classmethod
    def of(cls, config: Config, labels: Sequence[str] | None = None) -> "DatasetSettings":
        """Return the settings of a config; `labels` are the class names of a checkpoint."""
        full_images = config.augmentation.crop is not None
        return cls(config.train.seed, labels, config.task.multi_label, full_images)


def build(config: DataConfig, inputs: Inputs, settings: DatasetSettings) -> Datasets:
    """Prepare all splits.

    The test split is held out first, then validation. Without configured labels the classes are
    those of the training source.

    Raises:
        UserError: a row is malformed, a label is unknown, or there is only one class.
    """
    builder = _DatasetBuilder(config, inputs, settings)
    # The training source comes first: it decides the classes.
    prepared = builder.prepare("train", config.train)
    names = tuple(settings.labels or _configured_labels(config) or prepared.names)
    train = builder.dataset(prepared, names, "train", config.train)
    splits: dict[str, Dataset | None] = {}
    for key in ("test", "validation"):
        split_config = getattr(config, key)
        if isinstance(split_config, Source):
            splits[key] = builder.dataset(
                builder.prepare(key, split_config), names, key, split_config
            )
        elif isinstance(split_config, Fraction):
            seed = settings.seed if split_config.seed is None else split_config.seed
            train_positions, held_out = stratified(train.labels, split_config.fraction, seed)
            splits[key] = None
            if len(held_out):
                splits[key], train = train.take(held_out), train.take(train_positions)
            else:
                console.log(f"data.{key}: no class has two rows, so none can be held out")
        else:
            splits[key] = None
    # A multi-label task may have a single label.
    if len(names) < 2 - settings.multi_label:
        raise UserError(f"data.label: at least two classes are needed; found {list(names)}")
    result = Datasets(train, splits["validation"], splits["test"], names)
    _log_summary(result)
    for name in names:
        if name.strip().lower() in MISSING_VALUES:
            location = builder.location_of(name, "train", config.train)
            console.log(f"{location}: label {name!r} is a class; is it a missing value?")
    return result


def of_source(
    config: DataConfig, key: str, source: Source, inputs: Inputs, settings: DatasetSettings
) -> Dataset:
    """Prepare one split of known classes (`settings.labels`), for evaluation alone."""
    builder = _DatasetBuilder(config, inputs, settings)
    return builder.dataset(builder.prepare(key, source), tuple(settings.labels or ()), key, source)


def columns(config: DataConfig, inputs: Inputs) -> tuple[str | int, ...]:
    """Return the columns to read: an image, a text or a pair of texts, and the label last."""
    columns_of = {"image": config.image, "text": config.text, "text_pair": config.text_pair}
    return (*(columns_of[name] for name in inputs.columns), config.label)


def build_request(
    config: DataConfig, key: str, source: Source, inputs: Inputs, multi_label: bool
) -> Request:
    """Return the request for a source; `key` names its split in the section `data`."""
    separator = config.label_separator if multi_label else None
    return Request(source, columns(config, inputs), f"data.{key}", config.on_bad_row, separator)


def read_rows(request: Request, inputs: Inputs) -> Iterator[sources.Row | sources.BadRow]:
    """Yield the rows of a source without preparing them."""
    if isinstance(inputs, ImageInputs):
        return images.read(request)
    return sources.read(request.source, request.columns, request.key, request.separator is not None)


@dataclass(frozen=True)
class _DatasetBuilder:
    """Builds the splits of one config."""

    config: DataConfig
    inputs: Inputs
    settings: DatasetSettings

    def prepare(self, key: str, source: Source) -> texts.PreparedTexts | images.PreparedImages:
        """Return the prepared set of a source; `key` names its split."""
        request = build_request(self.config, key, source, self.inputs, self.settings.multi_label)
        cache = default_cache(self.config.cache_dir)
        if not isinstance(self.inputs, ImageInputs):
            return texts.prepare(request, self.inputs, cache)
        cache_pixels = self.config.cache_images
        if cache_pixels == "auto" and self.settings.full_images and key == "train":
            cache_pixels = False  # random crops start from the full image, not from cached pixels
        return images.prepare(request, self.inputs, cache, cache_pixels)

    def dataset(
        self,
        prepared: texts.PreparedTexts | images.PreparedImages,
        names: tuple[str, ...],
        key: str,
        source: Source,
    ) -> Dataset:
        """Return a prepared set as a split whose labels are indices into `names`.

        Raises:
            UserError: a label is not one of `names`, or two labels look the same.
        """
        self._check_distinct(prepared.names, key, source)
        ids = {name: i for i, name in enumerate(names)}
        # With `data.labels`, a number that is not itself a name is an index into the names.
        has_labels = self.config.labels is not None
        indices = {str(i): i for i in range(len(names))} if has_labels else {}
        id_of_name = np.array([ids.get(n, indices.get(n, -1)) for n in prepared.names], np.int32)
        if (id_of_name < 0).any():
            unknown = prepared.names[int(np.flatnonzero(id_of_name < 0)[0])]
            raise UserError(
                f"{self.location_of(unknown, key, source)}: label {unknown!r} is not a class"
                f"{nearest(unknown, names)}"
            )
        rows = np.arange(prepared.rows)
        if not self.settings.multi_label:
            return Dataset(prepared, rows, id_of_name[prepared.labels])
        # [N, C]
        labels = np.zeros((prepared.rows, len(names)), np.float32)
        # One entry for each pair of a row and one of its labels.
        labels[prepared.label_rows, id_of_name[prepared.labels]] = 1
        return Dataset(prepared, rows, labels)

    def _check_distinct(self, names: Sequence[str], key: str, source: Source) -> None:
        """Refuse labels that look the same but differ.

        Raises:
            UserError: two labels differ only in spaces or in Unicode normalization.
        """
        if (pair := look_alike(names)) is not None:
            first, second = (self.location_of(name, key, source) for name in pair)
            raise UserError(
                f"{second}: label {format_label(pair[1])} differs from {format_label(pair[0])} "
                f"({first}) in "
                "spaces or Unicode normalization (NFC, NFD) only; write both the same"
            )

    def location_of(self, label: str, key: str, source: Source) -> str:
        """Return the place of the first row with a label.

        The source is read again: locations are not stored, as only errors need them.
        """
        request = build_request(self.config, key, source, self.inputs, self.settings.multi_label)
        for row in read_rows(request, self.inputs):
            if isinstance(row, sources.Row) and label in request.labels(row.values[-1]):
                return row.place
        return f"data.{key}"


def _configured_labels(config: DataConfig) -> list[str] | None:
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


def _log_summary(datasets: Datasets) -> None:
    sizes = [f"{len(datasets.train):,} train"]
    for name in ("validation", "test"):
        split = getattr(datasets, name)
        sizes.append(f"{len(split):,} {name}" if split is not None else f"no {name}")
    multi_label = datasets.train.labels.ndim == 2
    noun = "labels (multi-label)" if multi_label else "classes"
    console.log(f"data: {', '.join(sizes)}; {len(datasets.labels)} {noun}")
    if 2 * len(datasets.labels) > len(datasets.train) and len(datasets.train) > 20:
        console.log("data: hardly more training rows than labels; is data.label right?")
    # Splits that were held out share one prepared set.
    for prepared in {id(s.prepared): s.prepared for s in datasets.splits()}.values():
        if prepared.bad:
            console.log(
                f"data: {prepared.bad} bad rows skipped, the first: {prepared.bad_listed[0]}"
            )
        if prepared.cut:
            console.log(
                f"data: {prepared.cut:,} of {prepared.rows:,} rows "
                f"({prepared.cut / prepared.rows:.1%}) are cut at max_length"
            )
