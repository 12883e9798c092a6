"""Shared parts of image backbones: pixel scaling, the two outputs, the dtype policy."""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops


class Pixels(keras.layers.Layer):
    """Layer that maps RGB pixels, 0 to 255, to (x * scale - mean) / deviation.

    Computes in float32, whatever the precision of the backbone.

    Args:
        scale: factor for all channels.
        mean, deviation: for each channel, after scaling.
        bgr: whether the channels are first reversed, from RGB to BGR.
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
        """Return the constructor's arguments."""
        arguments = {"scale": self._scale, "mean": self._mean, "deviation": self._deviation}
        # The constructor sets the dtype.
        config = {k: v for k, v in super().get_config().items() if k != "dtype"}
        return {**config, **arguments, "bgr": self._bgr}

    def call(self, x):
        """Scale pixels, [B, H, W, 3] -> float32 [B, H, W, 3]."""
        x = ops.cast(x, "float32")
        if self._bgr:
            x = ops.flip(x, axis=-1)
        return (x * self._scale - ops.array(self._mean)) / ops.array(self._deviation)


# ImageNet's statistics of RGB pixels from 0 to 1.
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Input scaling by the mode names of keras.applications.imagenet_utils.
SCALINGS: Mapping[str, Mapping[str, Any]] = {
    "tf": {"scale": 1 / 127.5, "mean": (1.0, 1.0, 1.0)},  # -1 to 1
    "torch": {"scale": 1 / 255, "mean": IMAGENET_MEAN, "deviation": IMAGENET_DEVIATION},
    "caffe": {"mean": (103.939, 116.779, 123.68), "bgr": True},  # ImageNet's mean, BGR
    "unit": {"scale": 1 / 255},  # TF Hub's convention for images
    "none": {},
}


def encoder(image: keras.KerasTensor, feature_map: keras.KerasTensor) -> keras.Model:
    """Build the model `{image} [B, H, W, 3]` -> `{pooled [B, D], map [B, h, w, D]}`.

    Args:
        image: the input.
        feature_map: the last map, [B, h, w, D]; `pooled` is its mean, in float32.
    """
    pooled = keras.layers.GlobalAveragePooling2D(dtype="float32", name="average")(feature_map)
    return keras.Model({"image": image}, {"pooled": pooled, "map": feature_map}, name="encoder")


@contextmanager
def policy(precision: str):
    """Set the global dtype policy within the context, for builders that take no `dtype`."""
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(previous)
