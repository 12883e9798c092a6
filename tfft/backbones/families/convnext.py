"""ConvNeXt (Liu et al. 2022, "A ConvNet for the 2020s")."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from tfft.backbones.families import weight_map
from tfft.backbones.families.family import Family, ImageDefaults, number, numbers, refuse, two
from tfft.backbones.families.layers import DropPath, activation
from tfft.backbones.families.vision import Vision, Weight, layer_norm
from tfft.backbones.pixels import IMAGENET_DEVIATION, IMAGENET_MEAN
from tfft.spec import HeadStyle, Stage
from tfft.utils.errors import UserError

_EPSILON = 1e-6  # of all norms but the last


@dataclass(frozen=True, kw_only=True)
class Architecture(Vision):
    """The numbers of a ConvNeXt: in each of its stages, blocks of a width."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    patch: tuple[int, int]
    activation: str
    epsilon: float
    scaled: bool
    drop_path: float

    @property
    def blocks(self) -> list[str]:
        """Bottom to top."""
        return [f"block_{i}" for i in range(sum(self.depths))]

    @property
    def parameters(self) -> int:
        """How many weights it has at least: those of its matrices."""
        blocks = zip(self.widths, self.depths, strict=True)
        down = zip(self.widths, self.widths[1:], strict=False)
        stem = 3 * self.patch[0] * self.patch[1] * self.widths[0]
        return stem + sum(d * 8 * w * w for w, d in blocks) + sum(4 * a * b for a, b in down)

    def firsts(self) -> list[int]:
        """The first block of each stage."""
        return [sum(self.depths[:i]) for i in range(len(self.depths))]

    def build(self, precision: str) -> keras.Model:
        """`{image}` -> `{pooled [B, D], map [B, h, w, D]}`."""
        image, x = self.pixels()
        conv = {"dtype": precision}
        x = keras.layers.Conv2D(self.widths[0], self.patch, self.patch, name="stem_conv", **conv)(x)
        x = layer_norm(_EPSILON, precision, "stem_norm")(x)
        firsts, last = self.firsts(), max(sum(self.depths) - 1, 1)
        for i, name in enumerate(self.blocks):
            stage = max(s for s, first in enumerate(firsts) if first <= i)
            if stage and i == firsts[stage]:
                x = layer_norm(_EPSILON, precision, f"down_{stage}_norm")(x)
                width = self.widths[stage]
                x = keras.layers.Conv2D(width, 2, 2, name=f"down_{stage}_conv", **conv)(x)
            rate = self.drop_path * i / last
            x = Block(self, self.widths[stage], rate, dtype=precision, name=name)(x)
        vector = keras.layers.GlobalAveragePooling2D(dtype="float32", name="average")(x)
        pooled = layer_norm(self.epsilon, "float32", "norm")(vector)
        return keras.Model({"image": image}, {"pooled": pooled, "map": x}, name="encoder")

    def stages(self) -> tuple[Stage, ...]:
        """Bottom to top; what makes the map smaller belongs to the block after it."""
        firsts = self.firsts()
        found = [Stage("stem", "stem_(?:conv|norm)/")]
        for i, name in enumerate(self.blocks):
            down = f"|down_{firsts.index(i)}_(?:conv|norm)" if i and i in firsts else ""
            found.append(Stage(name, f"(?:{name}{down})/"))
        return (*found, Stage("top", "norm/"))

    def features(self) -> Mapping[str, int]:
        """Widths of the outputs."""
        return {"pooled": self.widths[-1], "map": self.widths[-1]}


class Block(keras.layers.Layer):
    """A filter for each channel, a norm, two dense layers over the channels."""

    def __init__(self, a: Architecture, width: int, drop_path: float, **kwargs: Any):
        super().__init__(**kwargs)
        dtype, self._width = self.dtype_policy, width
        self._activation = activation(a.activation)
        self.depthwise = keras.layers.DepthwiseConv2D(
            7, padding="same", dtype=dtype, name="depthwise"
        )
        self.norm = layer_norm(_EPSILON, dtype, "norm")
        self.up = keras.layers.Dense(4 * width, dtype=dtype, name="up")
        self.down = keras.layers.Dense(width, dtype=dtype, name="down")
        start = keras.initializers.Constant(1e-6)
        self.scale = Weight([width], start, dtype=dtype, name="scale") if a.scaled else None
        self.path_dropout = DropPath(drop_path, dtype=dtype, name="path_dropout")

    def build(self, shape):
        """Create everything."""
        for layer in (self.depthwise, self.norm, self.up):
            layer.build(shape)
        self.down.build((*shape[:-1], 4 * self._width))
        if self.scale is not None:
            self.scale.build()
        self.built = True

    def call(self, x, training: bool = False):
        """[B, h, w, C] -> the same shape."""
        y = self.down(self._activation(self.up(self.norm(self.depthwise(x)))))
        if self.scale is not None:
            y = self.scale(y)
        return x + self.path_dropout(y, training=training)


def architecture(config: Mapping[str, Any]) -> Architecture:
    """The numbers, with ConvNextConfig's defaults."""
    refuse(config, "num_channels", (3,))
    widths = numbers(config, "hidden_sizes", (96, 192, 384, 768))
    depths = numbers(config, "depths", (3, 3, 9, 3))
    if len(widths) != len(depths):
        raise UserError("config.json: hidden_sizes and depths must be of one length")
    return Architecture(
        widths=widths,
        depths=depths,
        patch=two(config, "patch_size", 4),
        activation=str(config.get("hidden_act", "gelu")),
        epsilon=number(config, "layer_norm_eps", 1e-12, float),
        scaled=number(config, "layer_scale_init_value", 1e-6, float) > 0,
        drop_path=number(config, "drop_path_rate", 0.0, float),
        size=two(config, "image_size", 224),
    )


def build_weight_map(a: Architecture) -> weight_map.WeightMap:
    """ConvNextModel's names."""
    entries = {
        **weight_map.conv("stem_conv", "embeddings.patch_embeddings", bias=True),
        **weight_map.norm("stem_norm", "embeddings.layernorm"),
        **weight_map.norm("norm", "layernorm"),
    }
    for stage, first in enumerate(a.firsts()):
        where = f"encoder.stages.{stage}"
        if stage:
            entries |= weight_map.norm(f"down_{stage}_norm", f"{where}.downsampling_layer.0")
            entries |= weight_map.conv(
                f"down_{stage}_conv", f"{where}.downsampling_layer.1", bias=True
            )
        for i in range(a.depths[stage]):
            block, layer = a.blocks[first + i], f"{where}.layers.{i}"
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
