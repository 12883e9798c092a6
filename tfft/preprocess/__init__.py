"""Preparation of raw inputs, in pairs: on the host for training, in the graph for serving.

Both give equal results, id for id and pixel for pixel. Tests check that, and export refuses to
publish a model for which they differ.

Importing it loads no TensorFlow; the first use of `ImageInputs` does.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tfft.config import DataConfig, ModelConfig, TaskSection
from tfft.preprocess import kerashub, tokenizer
from tfft.preprocess.text import TextInputs
from tfft.preprocess.windows import WindowSettings
from tfft.spec import ImageSpec
from tfft.utils.reading import library_errors, read_json

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf

    from tfft.preprocess.image import ImageInputs

__all__ = ["ImageInputs", "Inputs", "TextInputs", "load", "restore"]


def __getattr__(name: str) -> Any:
    if name != "ImageInputs":
        raise AttributeError(f"module 'tfft.preprocess' has no attribute {name!r}")
    from tfft.preprocess.image import ImageInputs

    return ImageInputs


class Inputs(Protocol):
    """Turns raw rows into the inputs of a model.

    Attributes:
        columns: the names of a row's raw values, as a served model takes them.
        pair: whether a row is two texts.
        fingerprint: changes when any prepared value could change.
    """

    columns: tuple[str, ...]
    pair: bool
    fingerprint: str

    def row(self, value: Any) -> tuple[Any, ...]:
        """Return a raw row as a tuple of its columns.

        Raises:
            UserError: `value` is not a row.
        """

    def request_row(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return a row as a client of a served model sends it."""

    def length_hint(self, row: tuple[Any, ...]) -> int:
        """Return a number that grows with a row's cost; similar rows share a batch best."""

    def batch(self, *columns: Sequence[Any]) -> "dict[str, np.ndarray]":
        """Compute the model's inputs from raw columns, each [B]."""

    def graph(self) -> Any:
        """Return what computes `batch` as TensorFlow ops.

        Where a row can be bad, the result also holds a `status`, string [B].
        """

    def input_specs(self) -> "dict[str, tf.TensorSpec]":
        """Return the specs of the model's inputs, as a signature takes them."""

    def save(self, folder: Path) -> None:
        """Write the files that `restore` reads."""


def load(
    model: ModelConfig,
    data: DataConfig,
    task: TaskSection,
    image_spec: ImageSpec | None = None,
    spec: str | None = None,
) -> Inputs:
    """Build the preparation for a backbone, with the changes of the section `data`.

    Args:
        model: names the backbone.
        data: the section `data`.
        task: the section `task`, which says what a row is.
        image_spec: of the backbone, if it reads images.
        spec: description of the backbone's tokenizer, if its graph comes with one.

    Raises:
        UserError: the tokenizer cannot be read, or `data.max_length` is too small for it.
    """
    if image_spec is not None:
        from tfft.preprocess.image import ImageInputs

        # `data.resize` replaces the checkpoint's crop as well.
        changes = {} if data.resize is None else {"resize": data.resize, "crop_fraction": 1.0}
        return ImageInputs(replace(image_spec, **changes))
    provider, _, name = model.backbone.partition(":")
    if spec is None and provider == "kerashub":
        spec = kerashub.tokenizer_spec(name)
    elif spec is None:
        spec = tokenizer.from_checkpoint(name, model.revision)
    columns = [name for name in task.columns if getattr(data, name) is not None]
    return TextInputs(
        spec,
        data.max_length,
        pair=len(columns) == 2,
        windows=WindowSettings.of(task),
        columns=columns,
    )


def restore(folder: Path) -> Inputs:
    """Load what a run saved with `Inputs.save`."""
    settings = read_json(folder / "inputs.json")
    with library_errors(f"{folder}: the tokenizer or inputs.json cannot be read"):
        if "image_spec" in settings:
            from tfft.preprocess.image import ImageInputs

            return ImageInputs.restore(settings)
        return TextInputs.restore(folder)
