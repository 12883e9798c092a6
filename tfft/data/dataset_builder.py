"""Build the three splits from the section `data`, with one list of class names for all."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tfft.config import Config, DataConfig, Fraction, Source
from tfft.data import images, sources, texts
from tfft.data.kinds import KINDS
from tfft.data.prepared import Request, default_cache
from tfft.data.splits import Dataset, stratified, together
from tfft.data.targets import Targets
from tfft.preprocess import Inputs
from tfft.utils import console


@dataclass(frozen=True)
class Datasets:
    """The splits of a run and the names of the model's outputs.

    Attributes:
        train: always present.
        validation: None without one.
        test: None without one.
        labels: names of the outputs in order: classes, or the columns of predicted numbers.
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
        labels: names of a checkpoint's outputs; they take precedence over the config's.
        targets: the kind of targets, a key of `kinds.KINDS`.
        full_images: whether images are needed at full size, not only at the model's size.
    """

    seed: int = 0
    labels: Sequence[str] | None = None
    targets: str = "class"
    full_images: bool = False

    @classmethod
    def of(cls, config: Config, labels: Sequence[str] | None = None) -> "DatasetSettings":
        """Return the settings of a config; `labels` are the outputs of a checkpoint."""
        full_images = config.augmentation.crop is not None
        return cls(config.train.seed, labels, config.task.targets, full_images)


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
    names = builder.targets.names(
        config,
        settings.labels,
        prepared,
        lambda label: builder.location_of(label, "train", config.train),
    )
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
            units = builder.targets.units(prepared)
            if units is None:
                groups = builder.targets.groups(train.targets)
                train_positions, held_out = stratified(groups, split_config.fraction, seed)
            else:
                train_positions, held_out = together(units[train.rows], split_config.fraction, seed)
            splits[key] = None
            if len(held_out):
                splits[key], train = train.take(held_out), train.take(train_positions)
            else:
                unit = "no class has two rows" if units is None else "there is one context"
                console.log(f"data.{key}: {unit}, so none can be held out")
        else:
            splits[key] = None
    result = Datasets(train, splits["validation"], splits["test"], names)
    builder.targets.check(names, lambda label: builder.location_of(label, "train", config.train))
    _log_summary(result)
    return result


def of_source(
    config: DataConfig, key: str, source: Source, inputs: Inputs, settings: DatasetSettings
) -> Dataset:
    """Prepare one split of known labels (`settings.labels`), for evaluation alone."""
    builder = _DatasetBuilder(config, inputs, settings)
    return builder.dataset(builder.prepare(key, source), tuple(settings.labels or ()), key, source)


def columns(config: DataConfig, inputs: Inputs) -> tuple[str | int, ...]:
    """Return the columns to read: a text or two, an image, and the targets last."""
    return (*(getattr(config, name) for name in inputs.columns), *config.label_columns)


def build_request(
    config: DataConfig, key: str, source: Source, inputs: Inputs, kind: str
) -> Request:
    """Return the request for a source.

    Args:
        config: section `data`.
        key: names the split of the source in the section `data`.
        source: the files.
        inputs: the preprocessing, which names the columns.
        kind: the kind of targets, a key of `kinds.KINDS`.
    """
    request_targets = KINDS[kind](config)
    row_columns = columns(config, inputs)
    return Request(source, row_columns, f"data.{key}", config.on_bad_row, request_targets)


def read_rows(request: Request, inputs: Inputs) -> Iterator[sources.Row | sources.BadRow]:
    """Yield the rows of a source without preparing them."""
    if inputs.image is not None:
        return images.read(request)
    return sources.read(request.source, request.columns, request.key, request.targets)


@dataclass(frozen=True)
class _DatasetBuilder:
    """Builds the splits of one config."""

    config: DataConfig
    inputs: Inputs
    settings: DatasetSettings

    @property
    def targets(self) -> Targets:
        """The kind of targets."""
        return KINDS[self.settings.targets](self.config)

    def prepare(self, key: str, source: Source) -> texts.PreparedTexts | images.PreparedImages:
        """Return the prepared set of a source; `key` names its split."""
        request = build_request(self.config, key, source, self.inputs, self.settings.targets)
        cache = default_cache(self.config.cache_dir)
        if self.inputs.image is None:
            return texts.prepare(request, self.inputs.text, cache)
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
        """Return a prepared set as a split.

        Raises:
            UserError: a label is not one of `names`, or two labels look the same.
        """
        array = self.targets.array(
            prepared, names, self.config, lambda label: self.location_of(label, key, source)
        )
        return Dataset(prepared, np.arange(prepared.rows), array, self.targets)

    def location_of(self, label: str, key: str, source: Source) -> str:
        """Return the place of the first row with a label.

        The source is read again: locations are not stored, as only errors need them.
        """
        request = build_request(self.config, key, source, self.inputs, self.settings.targets)
        for row in read_rows(request, self.inputs):
            if isinstance(row, sources.Row) and label in request.targets.labels(row.values[-1]):
                return row.place
        return f"data.{key}"


def _log_summary(datasets: Datasets) -> None:
    sizes = [f"{len(datasets.train):,} train"]
    for name in ("validation", "test"):
        split = getattr(datasets, name)
        sizes.append(f"{len(split):,} {name}" if split is not None else f"no {name}")
    console.log(f"data: {', '.join(sizes)}; {len(datasets.labels)} {datasets.train.kind.noun}")
    if 2 * len(datasets.labels) > len(datasets.train) and len(datasets.train) > 20:
        console.log("data: hardly more training rows than labels; is data.label right?")
    for name in ("train", "validation", "test"):
        split = getattr(datasets, name)
        if split is not None and split.kind.of_windows:
            divided = len(split.examples) - len(split)
            if divided:
                console.log(
                    f"data: {name} has {len(split.examples):,} windows: its longest texts are "
                    "divided"
                )
            if (warning := split.kind.lost(split)) is not None:
                console.log(f"data: in {name}, {warning}")
    # Splits that were held out share one prepared set.
    for prepared in {id(s.prepared): s.prepared for s in datasets.splits()}.values():
        if prepared.bad:
            console.log(
                f"data: {prepared.bad} bad rows skipped, the first: {prepared.bad_listed[0]}"
            )
        if prepared.cut:
            limit = "max_length"
            if prepared.window_ends is not None:
                is_pair = prepared.columns == 2
                limit = "max_windows or max_question_length" if is_pair else "max_windows"
            console.log(
                f"data: {prepared.cut:,} of {prepared.rows:,} rows "
                f"({prepared.cut / prepared.rows:.1%}) are cut at {limit}"
            )
