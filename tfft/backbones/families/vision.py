"""What networks of pictures share: pixels in, layers as PyTorch's authors built them."""

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
class Vision:
    """What all their architectures have.

    Attributes:
        size: height and width of the pictures, in pixels.
        scaling: arguments of `pixels.Pixels`.
    """

    size: tuple[int, int] = (224, 224)
    scaling: Mapping[str, Any] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()

    def pixels(self) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        """The input, and it as the network was trained to see it; each [B, H, W, 3]."""
        image = keras.Input([*self.size, 3], dtype="float32", name="image")
        return image, Pixels(**self.scaling, name="pixels")(image)

    def with_dropout(self, rate: float) -> "Vision":
        """Refused: unless a family says otherwise it has none."""
        raise UserError("model.dropout: this backbone has no dropout")

    def without(self, names: Sequence[str]) -> "Vision":
        """Refused: where blocks change the map's shape the others need them."""
        raise UserError("model.surgery.drop: the blocks of this backbone need one another")


class Weight(keras.layers.Layer):
    """A variable on its own, named as its layer; called, it multiplies."""

    def __init__(self, shape: Sequence[int], initializer: Any, **kwargs: Any):
        super().__init__(**kwargs)
        self._shape, self._initializer = tuple(shape), initializer

    def build(self, _=None):
        """Create the variable, within whatever layer is being built: its path begins there."""
        self.value = self.add_weight(self._shape, self._initializer, name="value")
        self.built = True

    def call(self, x):
        """[..., D] -> the same shape."""
        return x * ops.cast(self.value, x.dtype)


class ConvNorm(keras.layers.Layer):
    """A convolution, BatchNorm, an activation.

    Args:
        filters: channels made; None: each channel has a filter of its own (depthwise).
        same: TensorFlow's padding; else PyTorch's, as much on each side.
        activation_name: None for none.
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
        # Before a stride of one both paddings are the same, and the op's own costs no copy.
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
        # PyTorch's default momentum, 0.1, is the share of the new statistics.
        self.norm = keras.layers.BatchNormalization(
            momentum=0.9, epsilon=epsilon, dtype=dtype, name="norm"
        )
        self._activation = activation(activation_name or "linear")

    def build(self, shape):
        """Create both."""
        self.conv.build(shape)
        self.norm.build(self.conv.compute_output_shape(shape))
        self.built = True

    def call(self, x, training: bool = False):
        """[B, H, W, C] -> [B, h, w, C']."""
        if self._padding:
            x = ops.pad(x, [(0, 0), (self._padding,) * 2, (self._padding,) * 2, (0, 0)])
        return self._activation(self.norm(self.conv(x), training=training))

    def compute_output_shape(self, shape):
        """With the padding."""
        grown = [None if n is None else n + 2 * self._padding for n in shape[1:3]]
        return self.conv.compute_output_shape((shape[0], *grown, shape[3]))


def layer_norm(epsilon: float, dtype: Any, name: str) -> keras.layers.Layer:
    """Over the last axis."""
    return keras.layers.LayerNormalization(epsilon=epsilon, dtype=dtype, name=name)


def bicubic(old: int, new: int) -> np.ndarray:
    """What turns `old` values on a line into `new` ones, float32 [new, old].

    Keys 1981, "Cubic Convolution Interpolation", equation 15 with a = -0.75; places half a value
    from the ends, values beyond them repeated, as PyTorch's `interpolate` has it.
    """
    made = np.zeros([new, old])
    at = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(at).astype(int)
    for tap in range(-1, 3):
        x = np.abs(at - (first + tap))
        near = 1.25 * x**3 - 2.25 * x**2 + 1
        far = -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
        np.add.at(
            made,
            (np.arange(new), np.clip(first + tap, 0, old - 1)),
            np.where(x <= 1, near, np.where(x < 2, far, 0.0)),
        )
    return made.astype(np.float32)
