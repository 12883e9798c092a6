"""ResNet (He et al. 2016; with the stride in the 3 x 3 convolution, "v1.5")."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from tfft.backbones import pixels
from tfft.backbones.families import weight_map
from tfft.backbones.families.family import (
    Family,
    ImageDefaults,
    flag,
    number,
    numbers,
    pair,
    refuse,
)
from tfft.backbones.families.layers import activation
from tfft.backbones.families.vision import ConvNorm, VisionArchitecture
from tfft.spec import HeadStyle, Stage
from tfft.utils.errors import UserError

_REDUCTION = 4  # block width / bottleneck width


@dataclass(frozen=True, kw_only=True)
class Architecture(VisionArchitecture):
    """Dimensions of a ResNet.

    Attributes:
        stem: channels of the first convolution.
        widths, depths: number of channels and of blocks in each stage.
        bottleneck: whether a block has three convolutions instead of two.
        early: whether the stride of a bottleneck is in its first convolution (the original ResNet)
            instead of the second (v1.5).
        first_stride: stride of the first stage.
    """

    stem: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    activation: str
    bottleneck: bool
    early: bool
    first_stride: int

    @property
    def blocks(self) -> list[str]:
        """Names of the blocks, bottom to top."""
        return [f"block_{i}" for i in range(sum(self.depths))]

    @property
    def parameters(self) -> int:
        """Lower bound of the number of weights: the stem and the last convolutions of blocks."""
        # Lower bound: the 1 x 1 convolution at the start of a bottleneck is left out.
        per_block = [
            (w // _REDUCTION) * (9 * (w // _REDUCTION) + w) if self.bottleneck else 9 * w * w
            for w in self.widths
        ]
        return 3 * 49 * self.stem + sum(map(operator.mul, self.depths, per_block))

    def plan(self) -> list[tuple[int, int, int, int]]:
        """Return (stage, index within the stage, channels, stride) for each block."""
        # Only the first block of a stage may have a stride.
        return [
            (stage, i, width, (2 if stage else self.first_stride) if i == 0 else 1)
            for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True))
            for i in range(depth)
        ]

    def shortcuts(self) -> list[bool]:
        """Return for each block whether its shortcut has a convolution."""
        input_widths = [self.stem, *(width for _, _, width, _ in self.plan())]
        return [
            # A sum requires equal shapes.
            c_in != w or s != 1
            # Not strict: the last block's width is no input of another block.
            for c_in, (_, _, w, s) in zip(input_widths, self.plan(), strict=False)
        ]

    def build(self, precision: str) -> keras.Model:
        """Build the model `{image}` -> `{pooled [B, D], map [B, h, w, D]}` with random weights."""
        image, x = self.scaled_input()
        settings = {"dtype": precision, "activation_name": self.activation}
        x = ConvNorm(self.stem, 7, 2, name="stem", **settings)(x)
        # PyTorch pads max pooling with -inf. After a ReLU, padding with 0 gives the same maxima.
        x = keras.layers.ZeroPadding2D(1, dtype=precision, name="stem_padding")(x)
        x = keras.layers.MaxPooling2D(3, 2, dtype=precision, name="stem_pooling")(x)
        for name, (_, _, width, stride), shortcut in zip(
            self.blocks, self.plan(), self.shortcuts(), strict=True
        ):
            x = Block(self, width, stride, shortcut, dtype=precision, name=name)(x)
        return pixels.encoder(image, x)

    def stages(self) -> tuple[Stage, ...]:
        """Return the stages, bottom to top."""
        return tuple(Stage(name, f"{name}/") for name in ("stem", *self.blocks))


class Block(keras.layers.Layer):
    """Residual block of two or three convolutions."""

    def __init__(self, a: Architecture, width: int, stride: int, shortcut: bool, **kwargs: Any):
        super().__init__(**kwargs)
        settings = {"dtype": self.dtype_policy, "activation_name": a.activation}
        last = {"dtype": self.dtype_policy, "activation_name": None}
        if a.bottleneck:
            narrow = width // _REDUCTION
            first, second = (stride, 1) if a.early else (1, stride)
            self.convs = [
                ConvNorm(narrow, 1, first, name="conv_0", **settings),
                ConvNorm(narrow, 3, second, name="conv_1", **settings),
                ConvNorm(width, 1, name="conv_2", **last),
            ]
        else:
            self.convs = [
                ConvNorm(width, 3, stride, name="conv_0", **settings),
                ConvNorm(width, 3, name="conv_1", **last),
            ]
        self.shortcut = ConvNorm(width, 1, stride, name="shortcut", **last) if shortcut else None
        self._activation = activation(a.activation)

    def build(self, shape):
        """Create all sublayers."""
        if self.shortcut is not None:
            self.shortcut.build(shape)
        for conv in self.convs:
            conv.build(shape)
            shape = conv.compute_output_shape(shape)
        self.built = True

    def call(self, x, training: bool = False):
        """Apply the block, [B, H, W, C] -> [B, h, w, C']."""
        residual = x if self.shortcut is None else self.shortcut(x, training=training)
        for conv in self.convs:
            x = conv(x, training=training)
        return self._activation(ops.add(x, residual))


def architecture(config: Mapping[str, Any]) -> Architecture:
    """Return the architecture of config.json, with ResNetConfig's defaults.

    Raises:
        UserError: A value is missing, out of bounds or unsupported.
    """
    refuse(config, "num_channels", (3,))
    refuse(config, "layer_type", ("bottleneck", "basic"))
    refuse(config, "hidden_act", ("relu", "relu6"))
    widths = numbers(config, "hidden_sizes", (256, 512, 1024, 2048))
    depths = numbers(config, "depths", (3, 4, 6, 3))
    if len(widths) != len(depths):
        raise UserError("config.json: hidden_sizes and depths must have the same length")
    bottleneck = config.get("layer_type", "bottleneck") == "bottleneck"
    if bottleneck and min(widths) < _REDUCTION:
        raise UserError(
            f"config.json: hidden_sizes must be at least {_REDUCTION}. Received: {min(widths)}"
        )
    return Architecture(
        stem=number(config, "embedding_size", 64),
        widths=widths,
        depths=depths,
        activation=str(config.get("hidden_act", "relu")),
        bottleneck=bottleneck,
        early=flag(config, "downsample_in_bottleneck", False),
        first_stride=2 if flag(config, "downsample_in_first_stage", False) else 1,
        size=pair(config, "image_size", 224),
    )


def build_weight_map(a: Architecture) -> weight_map.WeightMap:
    """Return the map from variable paths to ResNetModel's tensor names."""
    entries = _conv("stem", "embedder.embedder")
    for block, (stage, i, _, _), shortcut in zip(a.blocks, a.plan(), a.shortcuts(), strict=True):
        layer = f"encoder.stages.{stage}.layers.{i}"
        for index in range(3 if a.bottleneck else 2):
            entries |= _conv(f"{block}/conv_{index}", f"{layer}.layer.{index}")
        if shortcut:
            entries |= _conv(f"{block}/shortcut", f"{layer}.shortcut")
    return entries


def _conv(path: str, tensor: str) -> dict[str, weight_map.Entry]:
    conv = weight_map.conv(f"{path}/conv", f"{tensor}.convolution")
    return conv | weight_map.batch_norm(f"{path}/norm", f"{tensor}.normalization")


FAMILY = Family(
    prefixes=("resnet.",),
    architecture=architecture,
    weight_map=build_weight_map,
    head_style=HeadStyle("pooled"),
    head_weight_map=weight_map.dense("head/logits", "classifier.1"),
    classifier="ResNetForImageClassification",
    image_defaults=ImageDefaults(0.875, "bicubic", pixels.IMAGENET_MEAN, pixels.IMAGENET_DEVIATION),
)
