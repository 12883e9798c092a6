"""ConvNeXt (Liu et al. 2022, "A ConvNet for the 2020s")."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from tfft.backbones.families import weight_map
from tfft.backbones.families.family import Family, ImageDefaults, number, numbers, pair, refuse
from tfft.backbones.families.layers import DropPath, activation
from tfft.backbones.families.vision import VisionArchitecture, Weight, layer_norm
from tfft.backbones.pixels import IMAGENET_DEVIATION, IMAGENET_MEAN
from tfft.spec import HeadStyle, Stage
from tfft.utils.errors import UserError

_EPSILON = 1e-6  # of all norms except the last


@dataclass(frozen=True, kw_only=True)
class Architecture(VisionArchitecture):
    """Dimensions of a ConvNeXt.

    Attributes:
        widths, depths: number of channels and of blocks in each stage.
        patch: kernel and stride of the stem.
        epsilon: of the last norm.
        scaled: whether residual branches have a factor per channel (LayerScale).
        drop_path: rate of stochastic depth in the last block; it grows linearly from 0.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    patch: tuple[int, int]
    activation: str
    epsilon: float
    scaled: bool
    drop_path: float

    @property
    def blocks(self) -> list[str]:
        """Names of the blocks, bottom to top."""
        return [f"block_{i}" for i in range(sum(self.depths))]

    @property
    def parameters(self) -> int:
        """Lower bound of the number of weights: its matrices."""
        # Two dense layers per block, w -> 4 w -> w; 2 x 2 convolutions between stages.
        blocks = zip(self.widths, self.depths, strict=True)
        down = zip(self.widths, self.widths[1:], strict=False)
        stem = 3 * self.patch[0] * self.patch[1] * self.widths[0]
        return stem + sum(d * 8 * w * w for w, d in blocks) + sum(4 * a * b for a, b in down)

    def first_blocks(self) -> list[int]:
        """Return the index of the first block of each stage."""
        return [sum(self.depths[:i]) for i in range(len(self.depths))]

    def build(self, precision: str) -> keras.Model:
        """Build the model `{image}` -> `{pooled [B, D], map [B, h, w, D]}` with random weights."""
        image, x = self.scaled_input()
        conv = {"dtype": precision}
        x = keras.layers.Conv2D(self.widths[0], self.patch, self.patch, name="stem_conv", **conv)(x)
        x = layer_norm(_EPSILON, precision, "stem_norm")(x)
        first_blocks, last = self.first_blocks(), max(sum(self.depths) - 1, 1)
        for i, name in enumerate(self.blocks):
            stage = max(s for s, first in enumerate(first_blocks) if first <= i)
            # The stem downsamples for the first stage.
            if stage and i == first_blocks[stage]:
                x = layer_norm(_EPSILON, precision, f"down_{stage}_norm")(x)
                width = self.widths[stage]
                x = keras.layers.Conv2D(width, 2, 2, name=f"down_{stage}_conv", **conv)(x)
            rate = self.drop_path * i / last
            x = Block(self, self.widths[stage], rate, dtype=precision, name=name)(x)
        average = keras.layers.GlobalAveragePooling2D(dtype="float32", name="average")(x)
        pooled = layer_norm(self.epsilon, "float32", "norm")(average)
        return keras.Model({"image": image}, {"pooled": pooled, "map": x}, name="encoder")

    def stages(self) -> tuple[Stage, ...]:
        """Return the stages, bottom to top. Downsampling layers belong to the block after them."""
        first_blocks = self.first_blocks()
        stages = [Stage("stem", "stem_(?:conv|norm)/")]
        for i, name in enumerate(self.blocks):
            down = f"|down_{first_blocks.index(i)}_(?:conv|norm)" if i and i in first_blocks else ""
            stages.append(Stage(name, f"(?:{name}{down})/"))
        return (*stages, Stage("top", "norm/"))


class Block(keras.layers.Layer):
    """Block of a depthwise convolution, a norm and two dense layers over the channels."""

    def __init__(self, a: Architecture, width: int, drop_path: float, **kwargs: Any):
        super().__init__(**kwargs)
        dtype, self._width = self.dtype_policy, width
        self._activation = activation(a.activation)
        # 7 x 7 kernels: section 2.5 of the paper.
        self.depthwise = keras.layers.DepthwiseConv2D(
            7, padding="same", dtype=dtype, name="depthwise"
        )
        self.norm = layer_norm(_EPSILON, dtype, "norm")
        self.up = keras.layers.Dense(4 * width, dtype=dtype, name="up")
        self.down = keras.layers.Dense(width, dtype=dtype, name="down")
        initializer = keras.initializers.Constant(1e-6)  # so that a new block is near the identity
        self.scale = Weight([width], initializer, dtype=dtype, name="scale") if a.scaled else None
        self.path_dropout = DropPath(drop_path, dtype=dtype, name="path_dropout")

    def build(self, shape):
        """Create all sublayers."""
        for layer in (self.depthwise, self.norm, self.up):
            layer.build(shape)
        self.down.build((*shape[:-1], 4 * self._width))
        if self.scale is not None:
            self.scale.build()
        self.built = True

    def call(self, x, training: bool = False):
        """Apply the block, [B, h, w, C] -> [B, h, w, C]."""
        y = self.down(self._activation(self.up(self.norm(self.depthwise(x)))))
        if self.scale is not None:
            y = self.scale(y)
        return x + self.path_dropout(y, training=training)


def architecture(config: Mapping[str, Any]) -> Architecture:
    """Return the architecture of config.json, with ConvNextConfig's defaults.

    Raises:
        UserError: A value is missing, out of bounds or unsupported.
    """
    refuse(config, "num_channels", (3,))
    widths = numbers(config, "hidden_sizes", (96, 192, 384, 768))
    depths = numbers(config, "depths", (3, 3, 9, 3))
    if len(widths) != len(depths):
        raise UserError("config.json: hidden_sizes and depths must have the same length")
    return Architecture(
        widths=widths,
        depths=depths,
        patch=pair(config, "patch_size", 4),
        activation=str(config.get("hidden_act", "gelu")),
        epsilon=number(config, "layer_norm_eps", 1e-12, float),
        scaled=number(config, "layer_scale_init_value", 1e-6, float) > 0,
        drop_path=number(config, "drop_path_rate", 0.0, float),
        size=pair(config, "image_size", 224),
    )


def build_weight_map(a: Architecture) -> weight_map.WeightMap:
    """Return the map from variable paths to ConvNextModel's tensor names."""
    entries = {
        **weight_map.conv("stem_conv", "embeddings.patch_embeddings", bias=True),
        **weight_map.norm("stem_norm", "embeddings.layernorm"),
        **weight_map.norm("norm", "layernorm"),
    }
    for stage, first in enumerate(a.first_blocks()):
        stage_prefix = f"encoder.stages.{stage}"
        if stage:
            entries |= weight_map.norm(f"down_{stage}_norm", f"{stage_prefix}.downsampling_layer.0")
            entries |= weight_map.conv(
                f"down_{stage}_conv", f"{stage_prefix}.downsampling_layer.1", bias=True
            )
        for i in range(a.depths[stage]):
            block, layer = a.blocks[first + i], f"{stage_prefix}.layers.{i}"
            entries |= {
                **weight_map.conv(f"{block}/depthwise", f"{layer}.dwconv", True, "depthwise"),
                **weight_map.norm(f"{block}/norm", f"{layer}.layernorm"),
                **weight_map.dense(f"{block}/up", f"{layer}.pwconv1"),
                **weight_map.dense(f"{block}/down", f"{layer}.pwconv2"),
            }
            if a.scaled:
                scale = weight_map.Entry((f"{layer}.layer_scale_parameter",))
                entries[f"{block}/scale/value"] = scale
    return entries


FAMILY = Family(
    prefixes=("convnext.",),
    architecture=architecture,
    weight_map=build_weight_map,
    head_style=HeadStyle("pooled"),
    head_weight_map=weight_map.dense("head/logits", "classifier"),
    classifier="ConvNextForImageClassification",
    image_defaults=ImageDefaults(0.875, "bicubic", IMAGENET_MEAN, IMAGENET_DEVIATION),
)
