"""Preparation of raw inputs, in pairs: on the host for training, in the graph for serving.

Both give equal results, id for id and pixel for pixel. Tests check that, and export refuses to
publish a model for which they differ.

Importing it loads no TensorFlow; reading images does.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tfft.config import DataConfig, ModelConfig, ModelSection, TaskSection
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
        columns: the names of a row's raw values, as a served model takes them; an image is last.
        pair: whether a row has two texts.
        text: prepares the texts of a row; None if it has none.
        image: prepares the image of a row; None if it has none.
        fingerprint: changes when any prepared value could change.
    """

    columns: tuple[str, ...]
    pair: bool
    text: "TextInputs | None"
    image: "ImageInputs | None"
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
    model: ModelSection,
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
    text_columns = [name for name in task.columns_in(data) if name != "image"]
    text = image = None
    if image_spec is not None:
        from tfft.preprocess.image import ImageInputs

        # `data.resize` replaces the checkpoint's crop as well.
        changes = {} if data.resize is None else {"resize": data.resize, "crop_fraction": 1.0}
        image = ImageInputs(replace(image_spec, **changes))
    if text_columns:
        text = TextInputs(
            _tokenizer(next(iter(model.towers.values()))) if spec is None else spec,
            data.max_length,
            pair=len(text_columns) == 2,
            windows=WindowSettings.of(task),
            columns=text_columns,
        )
    return _joined(text, image)


def _tokenizer(model: ModelConfig) -> str:
    """Return the description of the tokenizer of a text backbone."""
    provider, _, name = model.backbone.partition(":")
    if provider == "kerashub":
        return kerashub.tokenizer_spec(name)
    return tokenizer.from_checkpoint(name, model.revision)


def _joined(text: TextInputs | None, image: "ImageInputs | None") -> Inputs:
    """Return the inputs of rows with a text, an image, or both."""
    if text is None or image is None:
        return text or image
    from tfft.preprocess.joint import JointInputs

    return JointInputs(text, image)


def restore(folder: Path) -> Inputs:
    """Load what `save` wrote to a folder."""
    settings = read_json(folder / "inputs.json")
    with library_errors(f"{folder}: the tokenizer or inputs.json cannot be read"):
        text = image = None
        if "image_spec" in settings:
            from tfft.preprocess.image import ImageInputs

            image = ImageInputs.restore(settings)
        if image is None or "max_length" in settings:
            text = TextInputs.restore(folder)
        return _joined(text, image)
