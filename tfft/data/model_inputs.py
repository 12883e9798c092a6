"""The rows of a split as a model takes them: token ids, pixels, changed pixels."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import tensorflow as tf

from tfft.config import AugmentationConfig
from tfft.data import batches
from tfft.data.augmentation import Augmentation
from tfft.data.images import Pictures
from tfft.data.splits import Dataset
from tfft.preprocess import ImageInputs, Inputs, TextInputs
from tfft.preprocess.image import read
from tfft.utils.errors import UserError

AT_ONCE = 2  # batches that are decoded together; within one, pictures are decoded by many threads


def plain(split: Dataset, inputs: Inputs) -> batches.Rows:
    """The rows as they are."""
    if isinstance(inputs, ImageInputs):
        return Pixels(split, inputs)
    return batches.Tokens(split, cast(TextInputs, inputs).pad_id)


def changed(
    split: Dataset, inputs: Inputs, config: AugmentationConfig, classes: int, seed: int
) -> batches.Rows:
    """The training rows, changed as the section `augmentation` says."""
    if not config.any or not isinstance(inputs, ImageInputs):
        return plain(split, inputs)
    return Changed(split, inputs, Augmentation(config, inputs.image_spec, classes, seed))


class Pixels:
    """The pictures of a split: `{image}`, float32 [B, H, W, 3] from 0 to 255 (`batches.Rows`)."""

    uniform = False
    pad_id = 0
    at_once = AT_ONCE

    def __init__(self, split: Dataset, inputs: ImageInputs):
        if not isinstance(split.prepared, Pictures):
            raise TypeError(f"pictures are wanted. Received: {type(split.prepared).__name__}")
        self.split, self.inputs = split, inputs
        self._set = split.prepared

    def arrays(self, batch: batches.Batch) -> dict[str, np.ndarray]:
        """`{image}`, float32 [B, H, W, 3]."""
        pixels = self._set.pixels
        if pixels is not None:
            return {"image": pixels[self.split.rows[batch.positions]].astype(np.float32)}
        return self.inputs.batch([self.split.raw(int(at))[0] for at in batch.positions])

    def spec(self, rows: int | None, width: int | None) -> dict[str, tf.TensorSpec]:
        """Of `arrays`, and of what `finish` gives."""
        return {"image": tf.TensorSpec([rows, *self.inputs.image_spec.size, 3], tf.float32)}

    def source(self, batch: batches.Batch) -> dict[str, np.ndarray]:
        """What Python hands over: the pixels that were kept, or the bytes of the files."""
        pixels = self._set.pixels
        if pixels is not None:
            return {"image": pixels[self.split.rows[batch.positions]]}
        # Read here: what cannot be read has a name here.
        return {"image": np.array([self._bytes(int(at)) for at in batch.positions], object)}

    def source_spec(self, rows: int | None, width: int | None) -> dict[str, tf.TensorSpec]:
        """Of `source`."""
        if self._set.pixels is not None:
            return {"image": tf.TensorSpec([rows, *self._set.size, 3], tf.uint8)}
        return {"image": tf.TensorSpec([rows], tf.string)}

    def finish(self, given: Mapping[str, tf.Tensor], targets: tf.Tensor) -> Any:
        """What `source` gave, and the targets -> the inputs and the targets."""
        image = given["image"]
        if image.dtype == tf.string:
            return self.inputs.decode(image), targets
        return {"image": tf.cast(image, tf.float32)}, targets

    def _bytes(self, at: int) -> bytes:
        encoded = read(self.split.raw(at)[0])
        if not encoded:
            raise UserError(f"{self.split.raw(at)[0]}: is empty now; it was not when it was read")
        return encoded


class Mirrored(batches.Whole):
    """Rows of pictures, left and right turned round."""

    uniform = False

    def __init__(self, rows: batches.Rows):
        self._rows = rows

    def arrays(self, batch: batches.Batch) -> dict[str, np.ndarray]:
        """`{image}`, float32 [B, H, W, 3]."""
        return {"image": self._rows.arrays(batch)["image"][:, :, ::-1]}

    def spec(self, rows: int | None, width: int | None) -> dict[str, tf.TensorSpec]:
        """Of `arrays`."""
        return self._rows.spec(rows, width)


class Changed(Pixels):
    """The same, each batch changed by a draw of its own, which its number alone decides."""

    def __init__(self, split: Dataset, inputs: ImageInputs, augmentation: Augmentation):
        super().__init__(split, inputs)
        self.augmentation = augmentation

    def variant(self, number: int) -> "Variant":
        """The rows as one draw has them, the same in every epoch."""
        return Variant(self, number)

    def source(self, batch: batches.Batch) -> dict[str, np.ndarray]:
        """With the `seed` of the draw, int32 [2]."""
        return {**super().source(batch), "seed": np.array([batch.draw, batch.piece], np.int32)}

    def source_spec(self, rows: int | None, width: int | None) -> dict[str, tf.TensorSpec]:
        """Of `source`."""
        return {**super().source_spec(rows, width), "seed": tf.TensorSpec([2], tf.int32)}

    def finish(self, given: Mapping[str, tf.Tensor], targets: tf.Tensor) -> Any:
        """Decoded, changed, and perhaps mixed."""
        image, targets = self.augmentation(given["image"], targets, given["seed"])
        return {"image": image}, targets

    def arrays(self, batch: batches.Batch) -> dict[str, np.ndarray]:
        """A batch as it is trained on."""
        given = {name: tf.constant(value) for name, value in self.source(batch).items()}
        inputs, _ = self._finished(given, tf.constant(self.split.labels[batch.positions]))
        return {"image": inputs["image"].numpy()}

    @cached_property
    def _finished(self) -> Any:
        return tf.function(self.finish, reduce_retracing=True, autograph=False)


class Variant(batches.Whole):
    """One draw of each picture of a split."""

    uniform = False

    def __init__(self, rows: Changed, number: int):
        self._rows, self._number = rows, number

    def arrays(self, batch: batches.Batch) -> dict[str, np.ndarray]:
        """`{image}`; the batch's first row tells its draw from those of others."""
        draw = self._number * len(self._rows.split) + int(batch.positions[0])
        return self._rows.arrays(replace(batch, draw=draw))

    def spec(self, rows: int | None, width: int | None) -> dict[str, tf.TensorSpec]:
        """Of `arrays`."""
        return self._rows.spec(rows, width)
