"""Section `data`: where rows come from, which columns count, how they are split."""

import unicodedata
from collections.abc import Iterable, Sequence
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
}


def _or_shorthand(schema: dict[str, Any]) -> None:
    """Turn the schema of the long form into one of either form."""
    examples = ["data.csv", "pictures/", "tfds:trec"]
    long = dict(schema)
    schema.clear()
    schema["anyOf"] = [long, {"type": "string", "examples": examples}]


class Source(Section):
    """One split's rows: a file, a glob, a list of them, folders of pictures, or a TFDS set."""

    model_config = ConfigDict(json_schema_extra=_or_shorthand)

    source: Literal["csv", "tsv", "jsonl", "parquet", "tfds", "images", "npz"]
    path: str | list[str] = Field(description="a path, a glob, a list; for tfds the set's name")
    split: str | None = Field(None, description="tfds only: the set's split, e.g. train[:80%]")
    data_dir: str | None = Field(None, description="tfds only: where sets are prepared")
    encoding: str = Field("utf-8", description="of csv, tsv and jsonl files")
    quoting: bool | None = Field(None, description="csv quotes; default: on for csv, off for tsv")

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        """`train: data.csv` and `train: tfds:trec` stand for the long form."""
        if not isinstance(value, str):
            return value
        if value.endswith("/"):
            return {"source": "images", "path": value}
        if value.startswith("tfds:"):
            return {"source": "tfds", "path": value.removeprefix("tfds:")}
        kind = SUFFIXES.get(PurePath(value).suffix.lower())
        if kind is None:
            raise ValueError(
                f"cannot tell the format from the name; write {{source: csv, path: {value}}}"
            )
        return {"source": kind, "path": value}

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
    """A seeded, stratified share of the training rows."""

    fraction: float = Field(gt=0, lt=1)
    seed: int | None = Field(None, ge=0, lt=2**31, description="that draws it; default: train.seed")


def _split_kind(value: Any) -> str:
    if isinstance(value, dict):
        return "source" if {"source", "path"} & set(value) else "fraction"
    return "fraction" if isinstance(value, Fraction) else "source"


Split = Annotated[
    Annotated[Source, Tag("source")] | Annotated[Fraction, Tag("fraction")],
    Discriminator(_split_kind),
]


class DataConfig(Section):
    """The rows, their columns and their preparation."""

    train: Source
    validation: Split | None = Fraction(fraction=0.1)
    test: Split | None = None
    text: str | int = Field("text", description="column: a name, or a number (no header)")
    text_pair: str | int | None = Field(None, description="second text of a pair")
    image: str | int = Field(
        "image", description="column with the path of a picture, or, of tfds and npz, its pixels"
    )
    label: str | int = "label"
    label_separator: str = Field(
        "|", min_length=1, description="multi-label tasks: between the labels of a row"
    )
    labels: list[str] | str | None = Field(
        None, description="class names in order, or a file with one a line; default: by appearance"
    )
    max_length: int = Field(128, ge=4, description="tokens a row, special tokens included")
    resize: Literal["crop", "stretch", "pad"] | None = Field(
        None, description="how a picture gets its size; default: as the backbone's authors did"
    )
    cache_images: bool | Literal["auto"] = Field(
        "auto",
        description="keep decoded pictures on disk; auto: up to 4 GiB, if no random crop is wanted",
    )
    on_bad_row: Literal["stop", "skip"] = "stop"
    cache_dir: str | None = Field(None, description="default: $TFFT_CACHE or ~/.cache/tfft")

    @model_validator(mode="after")
    def _labels_differ(self) -> "DataConfig":
        if isinstance(self.labels, list):
            check_labels(self.labels)
        return self


def look_alike(labels: Iterable[str]) -> tuple[str, str] | None:
    """Return the first two labels that differ in spaces or in Unicode's form at most."""
    seen: dict[str, str] = {}
    for label in labels:
        look = unicodedata.normalize("NFC", " ".join(label.split()))
        if look in seen:
            return seen[look], label
        seen[look] = label
    return None


def shown(label: str) -> str:
    """Return a label as an error shows it, with what cannot be seen in it."""
    return repr(label) if label.isascii() else f"{label!r} ({label!a})"


def check_labels(labels: Sequence[str]) -> None:
    """Refuse names of classes that are too few or look the same.

    Raises:
        ValueError: they are.
    """
    if len(labels) < 2:
        raise ValueError(f"`labels` must be at least two names. Received: {list(labels)}")
    if (pair := look_alike(labels)) is not None:
        raise ValueError(f"`labels` must differ. Received: {' and '.join(map(shown, pair))}")
