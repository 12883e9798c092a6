"""What backbones of pictures share: scaled pixels in, a vector and a map out."""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops


class Pixels(keras.layers.Layer):
    """Pixels from 0 to 255, RGB, as a backbone was trained on them: (x * scale - mean) / deviation.

    Args:
        scale: one factor.
        mean, deviation: of each channel, after scaling.
        bgr: whether the channels are turned round first.
    """

    def __init__(
        self,
        scale: float = 1.0,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        deviation: Sequence[float] = (1.0, 1.0, 1.0),
        bgr: bool = False,
        **kwargs: Any,
    ):
        super().__init__(dtype="float32", **kwargs)
        self._scale, self._bgr = scale, bgr
        self._mean, self._deviation = tuple(mean), tuple(deviation)

    def get_config(self):
        """Its arguments."""
        own = {"scale": self._scale, "mean": self._mean, "deviation": self._deviation}
        config = {k: v for k, v in super().get_config().items() if k != "dtype"}
        return {**config, **own, "bgr": self._bgr}

    def call(self, x):
        """[B, H, W, 3] -> the same shape."""
        x = ops.cast(x, "float32")
        if self._bgr:
            x = ops.flip(x, axis=-1)
        return (x * self._scale - ops.array(self._mean)) / ops.array(self._deviation)


IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# How the authors of ImageNet's models scale, by the names of keras.applications.imagenet_utils.
SCALINGS: Mapping[str, Mapping[str, Any]] = {
    "tf": {"scale": 1 / 127.5, "mean": (1.0, 1.0, 1.0)},
    "torch": {"scale": 1 / 255, "mean": IMAGENET_MEAN, "deviation": IMAGENET_DEVIATION},
    "caffe": {"mean": (103.939, 116.779, 123.68), "bgr": True},
    "unit": {"scale": 1 / 255},  # TF Hub's convention for pictures
    "none": {},
}


def encoder(image: keras.KerasTensor, found: keras.KerasTensor) -> keras.Model:
    """`{image}` [B, H, W, 3] -> `{pooled [B, D], map [B, h, w, D]}`, given the last map."""
    vector = keras.layers.GlobalAveragePooling2D(dtype="float32", name="average")(found)
    return keras.Model({"image": image}, {"pooled": vector, "map": found}, name="encoder")


@contextmanager
def policy(precision: str):
    """Within: layers are born with this dtype policy, where their builders take none."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
