"""Encoded pictures to pixels: the host side, which runs the ops that are served."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfft.preprocess.graph import image_ops
from tfft.spec import ImageSpec
from tfft.utils.errors import UserError
from tfft.utils.files import write_atomic
from tfft.utils.reading import MIB, expanded, read_bytes

LARGEST = 128 * MIB  # bytes of a picture's file
STATUS = "status"  # the name of what the graph says of each row
VERSION = 2  # of what pixels come of a file: raise it when they change


class InspectedImage(NamedTuple):
    """What is in a picture's file: its height and width, int32 [2]; its difference hash,
    bool [64] (`pictures.grey_bits`); it at 8 x 8, uint8 [8, 8, 3]; it at the model's size, uint8
    [H, W, 3]."""

    size: np.ndarray
    bits: np.ndarray
    tiny: np.ndarray
    pixels: np.ndarray


class ImageInputs:
    """How encoded pictures become pixels (an `Inputs`).

    Args:
        picture: their size, and how they get there.
    """

    columns = ("image",)
    pair = False

    def __init__(self, image_spec: ImageSpec):
        self.image_spec = image_spec

    @property
    def fingerprint(self) -> str:
        """Changes when any pixel of any picture could change."""
        parts = json.dumps([VERSION, asdict(self.image_spec)])
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    def row(self, value: Any) -> tuple[bytes | str, ...]:
        """A raw row: the path of a file, or a file's bytes.

        Raises:
            UserError: it is neither.
        """
        one = value[0] if isinstance(value, tuple | list) and len(value) == 1 else value
        if isinstance(one, Path):
            one = str(one)
        if not isinstance(one, bytes | str):
            raise UserError(f"a row must be the path or the bytes of a picture. Received: {one!r}")
        return (one,)

    def request_row(self, row: tuple[bytes | str, ...]) -> tuple[bytes]:
        """A row as a client of a served model sends it: the file's bytes."""
        return (read(row[0]),)

    def length_hint(self, row: tuple[bytes | str, ...]) -> int:
        """The same for all: every picture gets one size."""
        return 0

    def batch(self, images: Sequence[bytes | str]) -> dict[str, np.ndarray]:
        """`{image}`, float32 [B, H, W, 3], from 0 to 255.

        Raises:
            UserError: a file cannot be read, or is no picture; it is named.
        """
        encoded = [read(image) for image in images]
        try:
            pixels = self._reader(tf.constant(encoded, tf.string, [len(encoded)]))
        except tf.errors.InvalidArgumentError as error:
            bad = [(at, why) for at, e in enumerate(encoded) if (why := self.check(e))]
            at, why = bad[0] if bad else (0, str(error.message))
            name = images[at] if isinstance(images[at], str) else f"picture {at + 1}"
            raise UserError(f"{name}: {why}") from None
        return {"image": pixels.numpy().astype(np.float32)}

    def check(self, encoded: bytes) -> str:
        """What is wrong with a file; empty where nothing is."""
        seen = self.inspect(encoded)
        return seen if isinstance(seen, str) else ""

    def inspect(self, encoded: bytes) -> "InspectedImage | str":
        """What is in a file, or what is wrong with it. Threads may call it at once."""
        if not encoded:
            return image_ops.EMPTY
        try:
            seen = self._inspector(tf.constant(encoded))
        except tf.errors.InvalidArgumentError as error:
            return image_ops.reason(error)
        return InspectedImage(*(value.numpy() for value in seen))

    def decode(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        """Encoded pictures, strings [B] -> `{image}`, as TensorFlow ops that raise for bad ones."""
        return {"image": tf.cast(image_ops.reader(self.image_spec)(image), tf.float32)}

    def graph(self) -> Any:
        """Encoded pictures, strings [B] -> `{image, status}`, as TensorFlow ops that do not raise.

        The status, string [B], is `ok` or what is wrong with a picture; its pixels are zeros then.
        """
        read = image_ops.tolerant_reader(self.image_spec)

        def graph(image: tf.Tensor) -> dict[str, tf.Tensor]:
            pixels, status = read(image)
            return {"image": tf.cast(pixels, tf.float32), STATUS: status}

        return graph

    def input_specs(self) -> dict[str, tf.TensorSpec]:
        """The prepared inputs by name, as a signature takes them."""
        return {"image": tf.TensorSpec([None, *self.image_spec.size, 3], tf.float32, "image")}

    @cached_property
    def _reader(self) -> Any:
        spec = tf.TensorSpec([None], tf.string)
        return tf.function(image_ops.reader(self.image_spec), [spec], autograph=False)

    @cached_property
    def _inspector(self) -> Any:
        def inspect(data: tf.Tensor) -> tuple[tf.Tensor, ...]:
            decoded = image_ops.decode(data)
            fitted = image_ops.fit(decoded, self.image_spec)
            size, bits = tf.shape(decoded)[:2], image_ops.grey_bits(decoded)
            return size, bits, image_ops.tiny(decoded), fitted

        return tf.function(inspect, [tf.TensorSpec([], tf.string)], autograph=False)

    def save(self, folder: Path) -> None:
        """Write `inputs.json`; `restore` reads it."""
        text = json.dumps({"image_spec": asdict(self.image_spec)})
        write_atomic(folder / "inputs.json", text)

    @classmethod
    def restore(cls, settings: dict[str, Any]) -> "ImageInputs":
        """From what `save` wrote."""
        image_spec = settings["image_spec"]
        return cls(ImageSpec(**{**image_spec, "size": tuple(image_spec["size"])}))


def read(image: bytes | str) -> bytes:
    """The bytes of a picture, which are given or lie in a file.

    Raises:
        UserError: the file cannot be read, or is no regular one, or too large.
    """
    if isinstance(image, bytes):
        return image
    return read_bytes(expanded(image), LARGEST)
