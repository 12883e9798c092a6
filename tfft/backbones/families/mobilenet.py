"""MobileNetV2 (Sandler et al. 2018, "Inverted Residuals and Linear Bottlenecks")."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from tfft.backbones import pixels
from tfft.backbones.families import weight_map
from tfft.backbones.families.family import Family, ImageDefaults, flag, number, refuse, two
from tfft.backbones.families.vision import ConvNorm, Vision
from tfft.spec import HeadStyle, Stage

# Of each block after the first (table 2 of the paper): channels before scaling, stride.
_WIDTHS = (24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)
_STRIDES = (2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)
_STEM, _FIRST, _TOP = 32, 16, 1280


@dataclass(frozen=True, kw_only=True)
class Architecture(Vision):
    """The numbers of a MobileNetV2.

    Attributes:
        stem, first, widths, top: channels of the first convolution, of the first block, of the
            others, of the last convolution.
        inner: channels within each of the other blocks.
        plan: stride and dilation of each of them.
        expanding: whether the stem's convolution is the first block's expansion.
        same: TensorFlow's padding.
    """

    stem: int
    first: int
    widths: tuple[int, ...]
    inner: tuple[int, ...]
    plan: tuple[tuple[int, int], ...]
    top: int
    activation: str
    epsilon: float
    expanding: bool
    same: bool

    @property
    def blocks(self) -> list[str]:
        """Bottom to top."""
        return [f"block_{i}" for i in range(len(self.widths) + 1)]

    @property
    def parameters(self) -> int:
        """How many weights it has at least: those of its matrices."""
        before = (self.first, *self.widths)
        blocks = zip(self.inner, before, self.widths, strict=False)
        return self.top * self.widths[-1] + sum(i * (a + b) for i, a, b in blocks)

    def build(self, precision: str) -> keras.Model:
        """`{image}` -> `{pooled [B, D], map [B, h, w, D]}`."""
        image, x = self.pixels()
        kind = {
            "epsilon": self.epsilon,
            "activation_name": self.activation,
            "same": self.same,
            "dtype": precision,
        }
        x = ConvNorm(self.stem, 3, 2, name="stem", **kind)(x)
        inner = None if self.expanding else self.stem
        x = Block(inner, self.first, 1, 1, False, kind, dtype=precision, name="block_0")(x)
        before = self.first
        for name, width, inner, (stride, dilation) in zip(
            self.blocks[1:], self.widths, self.inner, self.plan, strict=True
        ):
            around = stride == 1 and width == before
            block = Block(inner, width, stride, dilation, around, kind, dtype=precision, name=name)
            x, before = block(x), width
        return pixels.encoder(image, ConvNorm(self.top, 1, name="top", **kind)(x))

    def stages(self) -> tuple[Stage, ...]:
        """Bottom to top."""
        return tuple(Stage(name, f"{name}/") for name in ("stem", *self.blocks, "top"))

    def features(self) -> Mapping[str, int]:
        """Widths of the outputs."""
        return {"pooled": self.top, "map": self.top}


class Block(keras.layers.Layer):
    """More channels, a filter for each, fewer channels again.

    Args:
        inner: how many more; None: those that come in.
        around: whether the input is added to what comes out.
        kind: what all `ConvNorm` of the network have.
    """

    def __init__(
        self,
        inner: int | None,
        width: int,
        stride: int,
        dilation: int,
        around: bool,
        kind: Mapping[str, Any],
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self._around = around
        self.expand = ConvNorm(inner, 1, name="expand", **kind) if inner else None
        self.depthwise = ConvNorm(None, 3, stride, dilation=dilation, name="depthwise", **kind)
        self.reduce = ConvNorm(width, 1, name="reduce", **{**kind, "activation_name": None})

    def build(self, shape):
        """Create everything."""
        for conv in (self.expand, self.depthwise, self.reduce):
            if conv is not None:
                conv.build(shape)
                shape = conv.compute_output_shape(shape)
        self.built = True

    def call(self, x, training: bool = False):
        """[B, H, W, C] -> [B, h, w, C']."""
        y = x if self.expand is None else self.expand(x, training=training)
        y = self.reduce(self.depthwise(y, training=training), training=training)
        return x + y if self._around else y


def architecture(config: Mapping[str, Any]) -> Architecture:
    """The numbers, with MobileNetV2Config's defaults."""
    refuse(config, "num_channels", (3,))
    step, least = number(config, "depth_divisible_by", 8), number(config, "min_depth", 8)
    multiplier = number(config, "depth_multiplier", 1.0, float)

    def near(width: float) -> int:
        """The next multiple, but not below nine tenths."""
        made = max(least, int(width + step / 2) // step * step)
        return int(made + step if made < 0.9 * width else made)

    first, widths = near(round(_FIRST * multiplier)), [near(round(w * multiplier)) for w in _WIDTHS]
    ratio = number(config, "expand_ratio", 6.0, float)
    wide = flag(config, "finegrained_output", True) and multiplier < 1
    return Architecture(
        stem=near(round(_STEM * multiplier)),
        first=first,
        widths=tuple(widths),
        inner=tuple(near(round(w * ratio)) for w in (first, *widths[:-1])),
        plan=_plan(number(config, "output_stride", 32)),
        top=_TOP if wide else near(round(_TOP * multiplier)),
        activation=str(config.get("hidden_act", "relu6")),
        epsilon=number(config, "layer_norm_eps", 1e-3, float),
        expanding=flag(config, "first_layer_is_expansion", True),
        same=flag(config, "tf_padding", True),
        size=two(config, "image_size", 224),
    )


def _plan(output_stride: int) -> tuple[tuple[int, int], ...]:
    """Stride and dilation of each block: where the map is as small as it may be, filters widen."""
    made, now, dilation = [], 2, 1
    for stride in _STRIDES:
        if now == output_stride:
            made.append((1, dilation))
            dilation *= stride
        else:
            made.append((stride, 1))
            now *= stride
    return tuple(made)


def build_weight_map(a: Architecture) -> weight_map.WeightMap:
    """MobileNetV2Model's names."""
    entries = {**_conv("stem", "conv_stem.first_conv"), **_conv("top", "conv_1x1")}
    for at, block in enumerate(a.blocks):
        layer = f"layer.{at - 1}" if at else "conv_stem"
        if at or not a.expanding:
            entries |= _conv(f"{block}/expand", f"{layer}.expand_1x1")
        entries |= _conv(f"{block}/depthwise", f"{layer}.conv_3x3", "depthwise")
        entries |= _conv(f"{block}/reduce", f"{layer}.reduce_1x1")
    return entries


def _conv(path: str, tensor: str, form: str = "conv") -> dict[str, weight_map.Entry]:
    conv = weight_map.conv(f"{path}/conv", f"{tensor}.convolution", form=form)
    return conv | weight_map.batch_norm(f"{path}/norm", f"{tensor}.normalization")


FAMILY = Family(
    prefixes=("mobilenet_v2.",),
    architecture=architecture,
    weight_map=build_weight_map,
    head_style=HeadStyle("pooled"),
    head_weight_map=weight_map.dense("head/logits", "classifier"),
    classifier="MobileNetV2ForImageClassification",
    image_defaults=ImageDefaults(0.875, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
)
