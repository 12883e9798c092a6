"""Turn encoded images into pixels: the host side, which runs the ops that serving runs."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfft.preprocess.graph import image_ops
from tfft.spec import ImageSpec
from tfft.utils.errors import UserError
from tfft.utils.files import write_atomic
from tfft.utils.reading import MIB, expanded, read_bytes

MAX_FILE_BYTES = 128 * MIB  # of an image file
STATUS = "status"  # name of the output with the status of each row
VERSION = 2  # of the decoder: raise it when the pixels of any file change


class InspectedImage(NamedTuple):
    """The content of an image file.

    Attributes:
        size: height and width, int32 [2].
        bits: difference hash, bool [64] (`image_ops.grey_bits`).
        tiny: thumbnail, uint8 [8, 8, 3].
        pixels: at the model's size, uint8 [H, W, 3].
    """

    size: np.ndarray
    bits: np.ndarray
    tiny: np.ndarray
    pixels: np.ndarray


class ImageInputs:
    """Turns encoded images into pixels (an `Inputs`).

    Args:
        image_spec: size of the pixels, and how images are resized to it.
    """

    columns = ("image",)
    pair = False
    text = None

    def __init__(self, image_spec: ImageSpec):
        self.image_spec = image_spec

    @property
    def image(self) -> "ImageInputs":
        """The inputs themselves."""
        return self

    @property
    def fingerprint(self) -> str:
        """Digest that changes when any pixel of any image could change."""
        parts = json.dumps([VERSION, asdict(self.image_spec)])
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    def row(self, value: Any) -> tuple[bytes | str, ...]:
        """Return a raw row: the path of a file, or a file's bytes, as a tuple of one.

        Raises:
            UserError: `value` is neither.
        """
        image = value[0] if isinstance(value, tuple | list) and len(value) == 1 else value
        if isinstance(image, Path):
            image = str(image)
        if not isinstance(image, bytes | str):
            raise UserError(f"a row must be the path or the bytes of an image. Received: {image!r}")
        return (image,)

    def request_row(self, row: tuple[bytes | str, ...]) -> tuple[bytes]:
        """Return a row as a client of a served model sends it: the file's bytes."""
        return (read(row[0]),)

    def length_hint(self, row: tuple[bytes | str, ...]) -> int:
        """Return the same for all rows: all images are resized to one size."""
        return 0

    def batch(self, images: Sequence[bytes | str]) -> dict[str, np.ndarray]:
        """Decode and resize images: `{image}`, float32 [B, H, W, 3] from 0 to 255.

        Raises:
            UserError: a file cannot be read or is not an image; the message names it.
        """
        encoded = [read(image) for image in images]
        try:
            pixels = _reader(self.image_spec)(tf.constant(encoded, tf.string, [len(encoded)]))
        except tf.errors.InvalidArgumentError as error:
            # The op does not tell which image of the batch failed: try each.
            failures = [
                (index, message)
                for index, data in enumerate(encoded)
                if (message := self.check(data))
            ]
            index, message = failures[0] if failures else (0, str(error.message))
            name = images[index] if isinstance(images[index], str) else f"image {index + 1}"
            raise UserError(f"{name}: {message}") from None
        return {"image": pixels.numpy().astype(np.float32)}

    def check(self, encoded: bytes) -> str:
        """Return what is wrong with a file; empty if nothing is."""
        result = self.inspect(encoded)
        return result if isinstance(result, str) else ""

    def inspect(self, encoded: bytes) -> "InspectedImage | str":
        """Return the content of a file, or what is wrong with it.

        Threads may call it concurrently.
        """
        if not encoded:
            return image_ops.EMPTY
        try:
            result = _inspector(self.image_spec)(tf.constant(encoded))
        except tf.errors.InvalidArgumentError as error:
            return image_ops.reason(error)
        return InspectedImage(*(value.numpy() for value in result))

    def decode(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        """Decode and resize encoded images, strings [B], as TensorFlow ops: `{image}`.

        The ops raise for bad images.
        """
        return {"image": tf.cast(image_ops.reader(self.image_spec)(image), tf.float32)}

    def graph(self) -> Any:
        """Return a function of TensorFlow ops: encoded images, strings [B] -> `{image, status}`.

        The ops do not raise. The status, string [B], is `ok` or what is wrong with an image, whose
        pixels are 0 then.
        """
        read = image_ops.tolerant_reader(self.image_spec)

        def graph(image: tf.Tensor) -> dict[str, tf.Tensor]:
            pixels, status = read(image)
            return {"image": tf.cast(pixels, tf.float32), STATUS: status}

        return graph

    def input_specs(self) -> dict[str, tf.TensorSpec]:
        """Return the specs of the prepared inputs by name, as a signature takes them."""
        return {"image": tf.TensorSpec([None, *self.image_spec.size, 3], tf.float32, "image")}

    @property
    def settings(self) -> dict[str, Any]:
        """What `restore` takes, as plain data."""
        return {"image_spec": asdict(self.image_spec)}

    def save(self, folder: Path) -> None:
        """Write `inputs.json`; `restore` reads it."""
        write_atomic(folder / "inputs.json", json.dumps(self.settings))

    @classmethod
    def restore(cls, settings: dict[str, Any]) -> "ImageInputs":
        """Build the inputs from what `save` wrote."""
        image_spec = settings["image_spec"]
        # JSON has no tuples, and image_ops caches functions by the spec, which must be hashable.
        return cls(ImageSpec(**{**image_spec, "size": tuple(image_spec["size"])}))


# Tracing and optimizing them takes a second, so once for all inputs of an `ImageSpec`: those of a
# run, of the same run loaded, of its export.
@cache
def _reader(image_spec: ImageSpec) -> Any:
    """Return a function: encoded images, strings [B] -> uint8 [B, H, W, 3]."""
    spec = tf.TensorSpec([None], tf.string)
    return tf.function(image_ops.reader(image_spec), [spec], autograph=False)


@cache
def _inspector(image_spec: ImageSpec) -> Any:
    """Return a function of an encoded image: what `InspectedImage` holds."""

    def inspect(data: tf.Tensor) -> tuple[tf.Tensor, ...]:
        decoded = image_ops.decode(data)
        fitted = image_ops.fit(decoded, image_spec)
        size, bits = tf.shape(decoded)[:2], image_ops.grey_bits(decoded)
        return size, bits, image_ops.tiny(decoded), fitted

    return tf.function(inspect, [tf.TensorSpec([], tf.string)], autograph=False)


def read(image: bytes | str) -> bytes:
    """Return the bytes of an image, which may be the path of a file.

    Raises:
        UserError: the file cannot be read, is not a regular file, or is too large.
    """
    if isinstance(image, bytes):
        return image
    return read_bytes(expanded(image), MAX_FILE_BYTES)
