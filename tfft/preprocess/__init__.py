"""Preparation of raw inputs, in pairs: on the host for training, in the graph for serving.

The two are equal, id for id and pixel for pixel, by test, and export refuses to publish a model
for which they are not.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tfft.config import DataConfig, ModelConfig
from tfft.preprocess import kerashub, tokenizer
from tfft.preprocess.image import ImageInputs
from tfft.preprocess.text import TextInputs
from tfft.spec import ImageSpec
from tfft.utils.reading import library_errors, read_json

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf

__all__ = ["ImageInputs", "Inputs", "TextInputs", "load", "restore"]


class Inputs(Protocol):
    """What turns raw rows into what a model takes.

    Attributes:
        columns: the names of a row's raw values, as a served model takes them.
        pair: whether a row is two texts.
        fingerprint: changes when anything prepared could change.
    """

    columns: tuple[str, ...]
    pair: bool
    fingerprint: str

    def row(self, value: Any) -> tuple[Any, ...]:
        """A raw row as a tuple of its columns; raises UserError for what is none."""

    def request_row(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        """A row as a client of a served model sends it."""

    def length_hint(self, row: tuple[Any, ...]) -> int:
        """Rows of like cost go well into one batch."""

    def batch(self, *columns: Sequence[Any]) -> "dict[str, np.ndarray]":
        """Raw columns, each [B] -> the model's inputs."""

    def graph(self) -> Any:
        """The same, as TensorFlow ops; with a `status`, string [B], where a row can be bad."""

    def input_specs(self) -> "dict[str, tf.TensorSpec]":
        """The model's inputs, as a signature takes them."""

    def save(self, folder: Path) -> None:
        """Write what `restore` reads."""


def load(
    model: ModelConfig,
    data: DataConfig,
    image_spec: ImageSpec | None = None,
    spec: str | None = None,
) -> Inputs:
    """The preparation that belongs to a backbone, as the section `data` changes it.

    Args:
        picture: of `Backbone`, where it reads pictures.
        spec: its `tokenizer`, where it has one of its own.
    """
    if image_spec is not None:
        given = {} if data.resize is None else {"resize": data.resize, "crop_fraction": 1.0}
        return ImageInputs(replace(image_spec, **given))
    provider, _, name = model.backbone.partition(":")
    if spec is None and provider == "kerashub":
        spec = kerashub.tokenizer_spec(name)
    elif spec is None:
        spec = tokenizer.from_checkpoint(name, model.revision)
    return TextInputs(spec, data.max_length, pair=data.text_pair is not None)


def restore(folder: Path) -> Inputs:
    """What a run saved with `Inputs.save`."""
    settings = read_json(folder / "inputs.json")
    with library_errors(f"{folder}: the tokenizer or inputs.json is not as it was written"):
        if "image_spec" in settings:
            return ImageInputs.restore(settings)
        return TextInputs.restore(folder)
