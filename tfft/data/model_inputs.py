"""The rows of a split as model inputs: token ids, pixels, augmented pixels."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf

from tfft.config import AugmentationConfig
from tfft.data import batches
from tfft.data.augmentation import Augmentation
from tfft.data.images import PreparedImages
from tfft.data.splits import Dataset
from tfft.preprocess import ImageInputs, Inputs
from tfft.preprocess.image import read
from tfft.utils.errors import UserError

PARALLEL_BATCHES = 2  # decoded in parallel; within each, many threads decode images


def unaugmented_rows(split: Dataset, inputs: Inputs) -> batches.Rows:
    """Return the rows of a split without augmentation."""
    pixels = Pixels(split, inputs.image) if inputs.image is not None else None
    return _beside_tokens(split, inputs, pixels)


def augmented_rows(
    split: Dataset, inputs: Inputs, config: AugmentationConfig, classes: int, seed: int
) -> batches.Rows:
    """Return the training rows, augmented as the section `augmentation` says.

    Args:
        split: the training split.
        inputs: decodes its rows.
        config: the section `augmentation`.
        classes: number of classes, for labels that are mixed.
        seed: of the run.
    """
    if not config.any or inputs.image is None:
        return unaugmented_rows(split, inputs)
    augmentation = Augmentation(config, inputs.image.image_spec, classes, seed)
    return _beside_tokens(split, inputs, AugmentedPixels(split, inputs.image, augmentation))


def _beside_tokens(split: Dataset, inputs: Inputs, pixels: "Pixels | None") -> batches.Rows:
    """Return the pixels, the tokens, or both of a split, as the rows have them."""
    if inputs.text is None:
        return pixels
    tokens = batches.Tokens(split, inputs.text.pad_id)
    return tokens if pixels is None else TokensAndPixels(tokens, pixels)


class Pixels:
    """The images of a split: `{image}`, float32 [B, H, W, 3] from 0 to 255 (a `batches.Rows`)."""

    uniform = False
    pad_id = 0
    parallel_batches = PARALLEL_BATCHES

    def __init__(self, split: Dataset, inputs: ImageInputs):
        if not isinstance(split.prepared, PreparedImages):
            raise TypeError(f"`split` must hold images. Received: {type(split.prepared).__name__}")
        self.split, self.inputs = split, inputs
        self._prepared = split.prepared

    def arrays(self, batch: batches.Batch) -> dict[str, np.ndarray]:
        """Return `{image}`, float32 [B, H, W, 3]."""
        pixels = self._prepared.pixels
        if pixels is not None:
            return {"image": pixels[self.split.rows[batch.positions]].astype(np.float32)}
        return self.inputs.batch([self._image(int(position)) for position in batch.positions])

    def spec(self, rows: int | None, width: int | None) -> dict[str, tf.TensorSpec]:
        """Return the shapes and types of `arrays`, which `finish` returns too."""
        return {"image": tf.TensorSpec([rows, *self.inputs.image_spec.size, 3], tf.float32)}

    def raw_arrays(self, batch: batches.Batch) -> dict[str, np.ndarray]:
        """Return the cached pixels, or the bytes of the files."""
        pixels = self._prepared.pixels
        if pixels is not None:
            # uint8 until `finish`: a quarter of the bytes to pass to TensorFlow.
            return {"image": pixels[self.split.rows[batch.positions]]}
        # Read files in Python, not in TensorFlow: its errors would not name the file.
        # dtype object, because numpy's fixed-width bytes lose trailing zeros.
        return {
            "image": np.array([self._bytes(int(position)) for position in batch.positions], object)
        }

    def raw_spec(self, rows: int | None, width: int | None) -> dict[str, tf.TensorSpec]:
        """Return the shapes and types of `raw_arrays`."""
        if self._prepared.pixels is not None:
            return {"image": tf.TensorSpec([rows, *self._prepared.size, 3], tf.uint8)}
        return {"image": tf.TensorSpec([rows], tf.string)}

    def finish(self, raw: Mapping[str, tf.Tensor], targets: tf.Tensor) -> Any:
        """Compute (inputs, targets) from `raw_arrays`, as tensors, and the targets."""
        image = raw["image"]
        if image.dtype == tf.string:
            return self.inputs.decode(image), targets
        return {"image": tf.cast(image, tf.float32)}, targets

    def _image(self, position: int) -> str | bytes:
        return self._prepared.image(int(self.split.rows[position]))

    def _bytes(self, position: int) -> bytes:
        encoded = read(self._image(position))
        if not encoded:
            raise UserError(
                f"{self._image(position)}: is empty now; it was not when it was prepared"
            )
        return encoded


class MirroredRows(batches.PythonRows):
    """Rows of images, mirrored left to right."""

    uniform = False

    def __init__(self, rows: batches.Rows):
        self._rows = rows

    def arrays(self, batch: batches.Batch) -> dict[str, np.ndarray]:
        """Return the inputs with `image`, float32 [B, H, W, 3], mirrored."""
        arrays = self._rows.arrays(batch)
        return {**arrays, "image": arrays["image"][:, :, ::-1]}  # axis of the width

    def spec(self, rows: int | None, width: int | None) -> dict[str, tf.TensorSpec]:
        """Return the shapes and types of `arrays`."""
        return self._rows.spec(rows, width)


class AugmentedPixels(Pixels):
    """Augmented images of a split; the number of a batch alone decides its random changes."""

    def __init__(self, split: Dataset, inputs: ImageInputs, augmentation: Augmentation):
        super().__init__(split, inputs)
        self.augmentation = augmentation

    def variant(self, number: int) -> "Variant":
        """Return the rows under one fixed draw, the same in all epochs."""
        return Variant(self, number)

    def raw_arrays(self, batch: batches.Batch) -> dict[str, np.ndarray]:
        """Return the images and a `seed`, int32 [2]: numbers of the draw and the replica."""
        return {
            **super().raw_arrays(batch),
            "seed": np.array([batch.draw, batch.replica], np.int32),
        }

    def raw_spec(self, rows: int | None, width: int | None) -> dict[str, tf.TensorSpec]:
        """Return the shapes and types of `raw_arrays`."""
        return {**super().raw_spec(rows, width), "seed": tf.TensorSpec([2], tf.int32)}

    def finish(self, raw: Mapping[str, tf.Tensor], targets: tf.Tensor) -> Any:
        """Compute the augmented inputs, and the targets, which may be mixed."""
        image, targets = self.augmentation(raw["image"], targets, raw["seed"])
        return {"image": image}, targets

    def arrays(self, batch: batches.Batch) -> dict[str, np.ndarray]:
        """Return a batch as the model trains on it."""
        raw = {name: tf.constant(value) for name, value in self.raw_arrays(batch).items()}
        inputs, _ = self._traced_finish(raw, tf.constant(self.split.targets[batch.positions]))
        return {"image": inputs["image"].numpy()}

    @cached_property
    def _traced_finish(self) -> Any:
        # The last batch is smaller: relax the shape instead of tracing again.
        return tf.function(self.finish, reduce_retracing=True, autograph=False)


class Variant(batches.PythonRows):
    """The augmented images of a split under one fixed draw."""

    uniform = False

    def __init__(self, rows: AugmentedPixels, number: int):
        self._rows, self._number = rows, number

    def arrays(self, batch: batches.Batch) -> dict[str, np.ndarray]:
        """Return `{image}`; the seed derives from the variant and the batch's first position."""
        draw = self._number * len(self._rows.split) + int(batch.positions[0])
        return self._rows.arrays(replace(batch, draw=draw))

    def spec(self, rows: int | None, width: int | None) -> dict[str, tf.TensorSpec]:
        """Return the shapes and types of `arrays`."""
        return self._rows.spec(rows, width)


class TokensAndPixels:
    """The token ids and the images of a split, side by side (a `batches.Rows`)."""

    uniform = False

    def __init__(self, tokens: batches.Tokens, pixels: Pixels | Variant):
        self._tokens, self._pixels = tokens, pixels
        self.pad_id, self.parallel_batches = tokens.pad_id, pixels.parallel_batches

    def variant(self, number: int) -> "TokensAndPixels":
        """Return the rows with augmented images under one fixed draw, the same in all epochs."""
        return TokensAndPixels(self._tokens, self._pixels.variant(number))

    def arrays(self, batch: batches.Batch) -> dict[str, np.ndarray]:
        """Return the token arrays, int32 [B, width], and `image`, float32 [B, H, W, 3]."""
        return {**self._tokens.arrays(batch), **self._pixels.arrays(batch)}

    def spec(self, rows: int | None, width: int | None) -> dict[str, tf.TensorSpec]:
        """Return the shapes and types of `arrays`."""
        return {**self._tokens.spec(rows, width), **self._pixels.spec(rows, width)}

    def raw_arrays(self, batch: batches.Batch) -> dict[str, np.ndarray]:
        """Return the token arrays, and what `finish` computes the images from."""
        return {**self._tokens.raw_arrays(batch), **self._pixels.raw_arrays(batch)}

    def raw_spec(self, rows: int | None, width: int | None) -> dict[str, tf.TensorSpec]:
        """Return the shapes and types of `raw_arrays`."""
        return {**self._tokens.raw_spec(rows, width), **self._pixels.raw_spec(rows, width)}

    def finish(self, raw: Mapping[str, tf.Tensor], targets: tf.Tensor) -> Any:
        """Compute (inputs, targets) from `raw_arrays`, as tensors, and the targets."""
        images, targets = self._pixels.finish(raw, targets)
        tokens = {name: raw[name] for name in self._tokens.raw_spec(None, None)}
        return {**tokens, **images}, targets
