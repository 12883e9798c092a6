"""Rows with a text and an image: both preparations side by side, on the host and in the graph."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfft.preprocess.image import ImageInputs
from tfft.preprocess.text import TextInputs
from tfft.utils.errors import UserError
from tfft.utils.files import write_atomic


class JointInputs:
    """A text, or a pair of texts, and an image as the last column (an `Inputs`).

    Args:
        text: prepares the texts.
        image: prepares the image.
    """

    def __init__(self, text: TextInputs, image: ImageInputs):
        self.text, self.image = text, image
        self.columns = (*text.columns, *image.columns)
        self.pair = text.pair

    @property
    def fingerprint(self) -> str:
        """Digest that changes when any prepared value could change."""
        parts = f"{self.text.fingerprint} {self.image.fingerprint}"
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    def row(self, value: Mapping[str, Any] | Sequence[Any]) -> tuple[Any, ...]:
        """Return a raw row as a tuple: its texts, and the path or the bytes of its image.

        Args:
            value: the values in this order, or by column.

        Raises:
            UserError: a column is missing, or one of its values is not a text or an image.
        """
        values = value
        if isinstance(value, Mapping):
            values = [value[column] for column in self.columns if column in value]
        if not isinstance(values, list | tuple) or len(values) != len(self.columns):
            raise UserError(f"a row must have {', '.join(self.columns)}. Received: {value!r:.200}")
        *texts, image = values
        return (*self.text.row(texts), *self.image.row(image))

    def request_row(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return a row as a client of a served model sends it, with the bytes of its image."""
        return (*self.text.request_row(row[:-1]), *self.image.request_row(row[-1:]))

    def length_hint(self, row: tuple[Any, ...]) -> int:
        """Return the characters of the texts: all images have one size."""
        return self.text.length_hint(row[:-1])

    def batch(self, *columns: Sequence[Any]) -> dict[str, np.ndarray]:
        """Prepare raw columns, [B] each: `{token_ids, padding_mask, segment_ids, image}`.

        Raises:
            UserError: an image cannot be read or decoded.
        """
        return {**self.text.batch(*columns[:-1]), **self.image.batch(columns[-1])}

    def graph(self) -> "JointGraph":
        """Return what computes `batch` as TensorFlow ops, with the `status` of each image."""
        return JointGraph(self.text.graph(), self.image.graph())

    def input_specs(self) -> dict[str, tf.TensorSpec]:
        """Return the specs of the prepared inputs by name, as a signature takes them."""
        return {**self.text.input_specs(), **self.image.input_specs()}

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, and the settings of both parts as `inputs.json`."""
        self.text.save(folder)
        settings = {**self.text.settings, **self.image.settings}
        write_atomic(folder / "inputs.json", json.dumps(settings))


class JointGraph(tf.Module):
    """Prepares texts and images in the graph; tracks the tables of the tokenizer.

    Args:
        text: texts, strings [B] each -> prepared inputs.
        image: encoded images, strings [B] -> prepared inputs and `status`.
    """

    def __init__(self, text: Any, image: Any):
        super().__init__()
        self._text, self._image = text, image

    def __call__(self, *columns: tf.Tensor) -> dict[str, tf.Tensor]:
        """Prepare raw columns, strings [B] each, the image last."""
        return {**self._text(*columns[:-1]), **self._image(columns[-1])}
