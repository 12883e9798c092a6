"""Shared parts of image networks: pixel input, and layers with PyTorch's conventions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import ops

from tfft.backbones.families.layers import activation
from tfft.backbones.pixels import Pixels
from tfft.utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class VisionArchitecture:
    """Base of image architectures.

    Attributes:
        size: height and width of the images, in pixels.
        scaling: arguments of `pixels.Pixels`.
        dropped: names of the blocks to leave out.
    """

    size: tuple[int, int] = (224, 224)
    scaling: Mapping[str, Any] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()

    def scaled_input(self) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        """Return the image input and its scaled pixels, each [B, H, W, 3]."""
        image = keras.Input([*self.size, 3], dtype="float32", name="image")
        return image, Pixels(**self.scaling, name="pixels")(image)

    def with_dropout(self, rate: float) -> "VisionArchitecture":
        """Refuse a dropout rate; families with dropout override this.

        Raises:
            UserError: Always.
        """
        raise UserError("model.dropout: this backbone has no dropout")

    def without(self, names: Sequence[str]) -> "VisionArchitecture":
        """Refuse to leave out blocks, which may change the map's shape. Families can override it.

        Raises:
            UserError: Always.
        """
        raise UserError("model.surgery.drop: the blocks of this backbone need one another")


class Weight(keras.layers.Layer):
    """Layer of one variable, `value`; calling it multiplies the input by the variable.

    As a layer, the variable has a path that ends in the layer's name and `value`.

    Args:
        shape: of the variable.
        initializer: of the variable.
    """

    def __init__(self, shape: Sequence[int], initializer: Any, **kwargs: Any):
        super().__init__(**kwargs)
        self._shape, self._initializer = tuple(shape), initializer

    def build(self, _=None):
        """Create the variable. Its path begins with those of the layers that are being built."""
        self.value = self.add_weight(self._shape, self._initializer, name="value")
        self.built = True

    def call(self, x):
        """Multiply by the variable, [..., D] -> [..., D]."""
        return x * ops.cast(self.value, x.dtype)


class ConvNorm(keras.layers.Layer):
    """Convolution, BatchNorm and activation.

    Args:
        filters: output channels; None: a depthwise convolution.
        kernel: height and width of the kernel.
        stride: of the convolution.
        epsilon: of the norm.
        activation_name: a key of `layers.ACTIVATIONS`; None for no activation.
        same: whether to pad as TensorFlow does; else as PyTorch does, both sides equally.
        dilation: of the convolution.
    """

    def __init__(
        self,
        filters: int | None,
        kernel: int,
        stride: int = 1,
        epsilon: float = 1e-5,
        activation_name: str | None = "relu",
        same: bool = False,
        dilation: int = 1,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        dtype = self.dtype_policy
        # With stride 1 both paddings are equal, and the op's built-in padding avoids a copy.
        padded = not same and stride > 1 and kernel > 1
        self._padding = (kernel // 2) * dilation if padded else 0
        settings = {
            "strides": stride,
            "padding": "valid" if padded else "same",
            "dilation_rate": dilation,
            "use_bias": False,
            "dtype": dtype,
            "name": "conv",
        }
        if filters is None:
            self.conv = keras.layers.DepthwiseConv2D(kernel, **settings)
        else:
            self.conv = keras.layers.Conv2D(filters, kernel, **settings)
        # PyTorch's default momentum, 0.1, weighs the new statistics, Keras' the old ones.
        self.norm = keras.layers.BatchNormalization(
            momentum=0.9, epsilon=epsilon, dtype=dtype, name="norm"
        )
        self._activation = activation(activation_name or "linear")

    def build(self, shape):
        """Create the convolution and the norm."""
        self.conv.build(shape)
        self.norm.build(self.conv.compute_output_shape(shape))
        self.built = True

    def call(self, x, training: bool = False):
        """Convolve, normalise and activate, [B, H, W, C] -> [B, h, w, C']."""
        # PyTorch's padding=kernel // 2: the same on both sides.
        if self._padding:
            x = ops.pad(x, [(0, 0), (self._padding,) * 2, (self._padding,) * 2, (0, 0)])
        return self._activation(self.norm(self.conv(x), training=training))

    def compute_output_shape(self, shape):
        """Return the output's shape; the padding counts."""
        padded = [None if side is None else side + 2 * self._padding for side in shape[1:3]]
        return self.conv.compute_output_shape((shape[0], *padded, shape[3]))


def layer_norm(epsilon: float, dtype: Any, name: str) -> keras.layers.Layer:
    """Return a LayerNormalization over the last axis."""
    return keras.layers.LayerNormalization(epsilon=epsilon, dtype=dtype, name=name)


def bicubic(source: int, target: int) -> np.ndarray:
    """Return the matrix that resamples `source` values to `target`, float32 [target, source].

    Keys 1981, "Cubic Convolution Interpolation", equation 15 with a = -0.75. Pixel centres are half
    a pixel from the ends, and values beyond the ends repeat, as in PyTorch's `interpolate`.
    """
    weights = np.zeros([target, source])
    # Centres of the target's pixels in the source (align_corners=False).
    positions = (np.arange(target) + 0.5) * source / target - 0.5
    first = np.floor(positions).astype(int)
    # Four taps around each position.
    for tap in range(-1, 3):
        x = np.abs(positions - (first + tap))
        near = 1.25 * x**3 - 2.25 * x**2 + 1  # |x| <= 1
        far = -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)  # 1 < |x| < 2
        # `add.at` sums the taps that clipping moves to one and the same value.
        np.add.at(
            weights,
            (np.arange(target), np.clip(first + tap, 0, source - 1)),
            np.where(x <= 1, near, np.where(x < 2, far, 0.0)),
        )
    return weights.astype(np.float32)
