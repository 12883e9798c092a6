"""Section `data`: the sources of the rows, their columns and their splits."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from tfft.config.base import Section

SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "tsv",
    ".jsonl": "jsonl",
    ".parquet": "parquet",
    ".npz": "npz",
    ".conll": "conll",
    ".json": "squad",
}
# Columns of sources whose columns have fixed names or places: of CoNLL, tokens first, tags last.
FORMAT_COLUMNS: Mapping[str, Mapping[str, str | int]] = {
    "conll": {"text": 0, "label": -1},
    "squad": {"question": "question", "context": "context", "label": "answers"},
}


def _allow_shorthand(schema: dict[str, Any]) -> None:
    """Extend the schema of the long form by a string, the shorthand."""
    examples = ["data.csv", "images/", "tfds:trec"]
    long_form = dict(schema)
    schema.clear()
    schema["anyOf"] = [long_form, {"type": "string", "examples": examples}]


class Source(Section):
    """The rows of a split: a file, a glob, a list of them, folders of images, or TFDS data."""

    model_config = ConfigDict(json_schema_extra=_allow_shorthand)

    source: Literal["csv", "tsv", "jsonl", "parquet", "tfds", "images", "npz", "conll", "squad"]
    path: str | list[str] = Field(
        description="a path, a glob, or a list of them; tfds: the name of the data set"
    )
    split: str | None = Field(None, description="tfds only: split, e.g. train[:80%]")
    data_dir: str | None = Field(None, description="tfds only: folder of prepared data sets")
    encoding: str = Field("utf-8", description="encoding of csv, tsv, jsonl and conll files")
    quoting: bool | None = Field(
        None, description="whether cells may be quoted; default: on for csv, off for tsv"
    )

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        """Expand `train: data.csv`, `train: folder/` and `train: tfds:trec` to the long form."""
        if not isinstance(value, str):
            return value
        # A folder of images is told from a file by its slash.
        if value.endswith("/"):
            return {"source": "images", "path": value}
        if value.startswith("tfds:"):
            return {"source": "tfds", "path": value.removeprefix("tfds:")}
        source = SUFFIXES.get(PurePath(value).suffix.lower())
        if source is None:
            raise ValueError(
                f"cannot tell the format from the name; write {{source: csv, path: {value}}}"
            )
        return {"source": source, "path": value}

    @model_validator(mode="after")
    def _only_for_its_source(self) -> "Source":
        for name in ("split", "data_dir"):
            if self.source != "tfds" and getattr(self, name) is not None:
                raise ValueError(f"`{name}` is for source: tfds only")
        if self.source == "tfds" and not isinstance(self.path, str):
            raise ValueError("`path` must be one name for source: tfds")
        if self.path in ("", []):
            raise ValueError("`path` must not be empty")
        return self


class Fraction(Section):
    """A stratified random share of the training rows."""

    fraction: float = Field(gt=0, lt=1)
    seed: int | None = Field(
        None, ge=0, lt=2**31, description="seed of the draw; default: train.seed"
    )


def _split_kind(value: Any) -> str:
    # By the keys, so that pydantic reports the mistakes of one class and not of both.
    if isinstance(value, dict):
        return "source" if {"source", "path"} & set(value) else "fraction"
    return "fraction" if isinstance(value, Fraction) else "source"


Split = Annotated[
    Annotated[Source, Tag("source")] | Annotated[Fraction, Tag("fraction")],
    Discriminator(_split_kind),
]


class DataConfig(Section):
    """The rows, their columns, labels and preparation."""

    train: Source
    validation: Split | None = Fraction(fraction=0.1)
    test: Split | None = None
    text: str | int = Field(
        "text",
        description="column: a name, or a number in files without a header; conll: the first one",
    )
    text_pair: str | int | None = Field(None, description="column of the second text of a pair")
    question: str | int = Field("question", description="column of the question")
    context: str | int = Field(
        "context", description="column of the text that answers the question"
    )
    image: str | int | None = Field(
        None,
        description="column with the path of an image; tfds and npz: with its pixels; default of "
        "tasks on images: image. Beside a text it needs `model.text` and `model.image`",
    )
    label: str | int | list[str | int] = Field(
        "label",
        description="column of the label; for predicted numbers also a list of columns; conll: the "
        "last one; squad: answers",
    )
    label_separator: str = Field(
        "|", min_length=1, description="separator of the labels of a row, in multi-label tasks"
    )
    labels: list[str] | str | None = Field(
        None,
        description="class names in order, or a file with a name in each line; default: in order "
        "of appearance",
    )
    max_length: int = Field(
        128, ge=4, description="largest number of tokens of a row, special tokens included"
    )
    resize: Literal["crop", "stretch", "pad"] | None = Field(
        None,
        description="how an image gets the model's size; default: as in the backbone's own "
        "preprocessing",
    )
    cache_images: bool | Literal["auto"] = Field(
        "auto",
        description="keep decoded images on disk; auto: up to 4 GiB, if there is no random crop",
    )
    on_bad_row: Literal["stop", "skip"] = "stop"
    cache_dir: str | None = Field(None, description="default: $TFFT_CACHE or ~/.cache/tfft")

    @property
    def label_columns(self) -> tuple[str | int, ...]:
        """The target columns: one, or several of predicted numbers."""
        return tuple(self.label) if isinstance(self.label, list) else (self.label,)

    @model_validator(mode="before")
    @classmethod
    def _columns_of_format(cls, value: Any) -> Any:
        """Set the columns of formats that fix them, unless the config sets them."""
        if isinstance(value, dict):
            return {**FORMAT_COLUMNS.get(_format(value.get("train")), {}), **value}
        return value

    @model_validator(mode="after")
    def _labels_differ(self) -> "DataConfig":
        if self.label == []:
            raise ValueError("`label` must name a column. Received: []")
        if isinstance(self.labels, list):
            check_labels(self.labels)
        return self


def _format(source: Any) -> str:
    """Return the format of a source as it is written in the config; "" if it cannot be told."""
    if isinstance(source, str):
        return SUFFIXES.get(PurePath(source).suffix.lower(), "")
    return str(source.get("source")) if isinstance(source, dict) else ""


def look_alike(labels: Iterable[str]) -> tuple[str, str] | None:
    """Return the first two labels that differ only in spaces or Unicode normal form, or None."""
    labels_by_form: dict[str, str] = {}
    for label in labels:
        form = unicodedata.normalize("NFC", " ".join(label.split()))
        if form in labels_by_form:
            return labels_by_form[form], label
        labels_by_form[form] = label
    return None


def format_label(label: str) -> str:
    """Return a label for an error message, with escapes of characters that cannot be seen."""
    return repr(label) if label.isascii() else f"{label!r} ({label!a})"


def check_labels(labels: Sequence[str]) -> None:
    """Check that there are at least two class names, which look different.

    Raises:
        ValueError: there are fewer, or two of them look the same.
    """
    if len(labels) < 2:
        raise ValueError(f"`labels` must be at least two names. Received: {list(labels)}")
    if (pair := look_alike(labels)) is not None:
        raise ValueError(f"`labels` must differ. Received: {' and '.join(map(format_label, pair))}")
