"""MobileNetV2 (Sandler et al. 2018, "Inverted Residuals and Linear Bottlenecks")."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from tfft.backbones import pixels
from tfft.backbones.families import weight_map
from tfft.backbones.families.family import Family, ImageDefaults, flag, number, pair, refuse
from tfft.backbones.families.vision import ConvNorm, VisionArchitecture
from tfft.spec import HeadStyle, Stage

# Channels before scaling, and stride, of each block after the first (table 2 of the paper).
_WIDTHS = (24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)
_STRIDES = (2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)
_STEM, _FIRST, _TOP = 32, 16, 1280


@dataclass(frozen=True, kw_only=True)
class Architecture(VisionArchitecture):
    """Dimensions of a MobileNetV2.

    Attributes:
        stem, first, widths, top: output channels of the stem's convolution, of the first block, of
            the other blocks and of the last convolution.
        inner: expanded channels within each block after the first.
        plan: stride and dilation of each block after the first.
        expanding: whether the stem's convolution is the first block's expansion.
        same: whether to pad as TensorFlow does; else as PyTorch does.
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
        """Names of the blocks, bottom to top."""
        return [f"block_{i}" for i in range(len(self.widths) + 1)]

    @property
    def parameters(self) -> int:
        """Lower bound of the number of weights: its matrices."""
        input_widths = (self.first, *self.widths)
        blocks = zip(self.inner, input_widths, self.widths, strict=False)
        return self.top * self.widths[-1] + sum(
            inner * (c_in + c_out) for inner, c_in, c_out in blocks
        )

    def build(self, precision: str) -> keras.Model:
        """Build the model `{image}` -> `{pooled [B, D], map [B, h, w, D]}` with random weights."""
        image, x = self.scaled_input()
        settings = {
            "epsilon": self.epsilon,
            "activation_name": self.activation,
            "same": self.same,
            "dtype": precision,
        }
        # The stem halves the image.
        x = ConvNorm(self.stem, 3, 2, name="stem", **settings)(x)
        inner = None if self.expanding else self.stem
        x = Block(inner, self.first, 1, 1, False, settings, dtype=precision, name="block_0")(x)
        previous_width = self.first
        for name, width, inner, (stride, dilation) in zip(
            self.blocks[1:], self.widths, self.inner, self.plan, strict=True
        ):
            # The sum requires equal shapes.
            residual = stride == 1 and width == previous_width
            block = Block(
                inner, width, stride, dilation, residual, settings, dtype=precision, name=name
            )
            x, previous_width = block(x), width
        return pixels.encoder(image, ConvNorm(self.top, 1, name="top", **settings)(x))

    def stages(self) -> tuple[Stage, ...]:
        """Return the stages, bottom to top."""
        return tuple(Stage(name, f"{name}/") for name in ("stem", *self.blocks, "top"))


class Block(keras.layers.Layer):
    """Inverted residual block: expansion, depthwise convolution, projection.

    Args:
        inner: channels after the expansion; None: no expansion.
        width: output channels.
        stride, dilation: of the depthwise convolution.
        residual: whether the input is added to the output.
        settings: arguments of all `ConvNorm` layers.
    """

    def __init__(
        self,
        inner: int | None,
        width: int,
        stride: int,
        dilation: int,
        residual: bool,
        settings: Mapping[str, Any],
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self._residual = residual
        self.expand = ConvNorm(inner, 1, name="expand", **settings) if inner else None
        self.depthwise = ConvNorm(None, 3, stride, dilation=dilation, name="depthwise", **settings)
        # No activation after the projection: the linear bottleneck, section 3.2 of the paper.
        self.reduce = ConvNorm(width, 1, name="reduce", **{**settings, "activation_name": None})

    def build(self, shape):
        """Create all sublayers."""
        for conv in (self.expand, self.depthwise, self.reduce):
            if conv is not None:
                conv.build(shape)
                shape = conv.compute_output_shape(shape)
        self.built = True

    def call(self, x, training: bool = False):
        """Apply the block, [B, H, W, C] -> [B, h, w, C']."""
        y = x if self.expand is None else self.expand(x, training=training)
        y = self.reduce(self.depthwise(y, training=training), training=training)
        return x + y if self._residual else y


def architecture(config: Mapping[str, Any]) -> Architecture:
    """Return the architecture of config.json, with MobileNetV2Config's defaults.

    Raises:
        UserError: A value is missing, out of bounds or unsupported.
    """
    refuse(config, "num_channels", (3,))
    divisor, min_width = number(config, "depth_divisible_by", 8), number(config, "min_depth", 8)
    multiplier = number(config, "depth_multiplier", 1.0, float)

    def rounded(width: float) -> int:
        """Round channels to a multiple of `divisor`, but by no more than a tenth down."""
        multiple = max(min_width, int(width + divisor / 2) // divisor * divisor)
        return int(multiple + divisor if multiple < 0.9 * width else multiple)

    first, widths = (
        rounded(round(_FIRST * multiplier)),
        [rounded(round(w * multiplier)) for w in _WIDTHS],
    )
    ratio = number(config, "expand_ratio", 6.0, float)
    # transformers keeps 1,280 channels in narrow networks if `finegrained_output` is set.
    full_top = flag(config, "finegrained_output", True) and multiplier < 1
    return Architecture(
        stem=rounded(round(_STEM * multiplier)),
        first=first,
        widths=tuple(widths),
        inner=tuple(rounded(round(w * ratio)) for w in (first, *widths[:-1])),
        plan=_plan(number(config, "output_stride", 32)),
        top=_TOP if full_top else rounded(round(_TOP * multiplier)),
        activation=str(config.get("hidden_act", "relu6")),
        epsilon=number(config, "layer_norm_eps", 1e-3, float),
        expanding=flag(config, "first_layer_is_expansion", True),
        same=flag(config, "tf_padding", True),
        size=pair(config, "image_size", 224),
    )


def _plan(output_stride: int) -> tuple[tuple[int, int], ...]:
    """Return stride and dilation for each block.

    Once the stride of the map reaches `output_stride`, further strides become dilations.
    """
    # The stem has stride 2.
    plan, current_stride, dilation = [], 2, 1
    for stride in _STRIDES:
        if current_stride == output_stride:
            plan.append((1, dilation))
            dilation *= stride
        else:
            plan.append((stride, 1))
            current_stride *= stride
    return tuple(plan)


def build_weight_map(a: Architecture) -> weight_map.WeightMap:
    """Return the map from variable paths to MobileNetV2Model's tensor names."""
    entries = {**_conv("stem", "conv_stem.first_conv"), **_conv("top", "conv_1x1")}
    for index, block in enumerate(a.blocks):
        layer = f"layer.{index - 1}" if index else "conv_stem"
        # With `expanding`, the stem's convolution is the first block's expansion.
        if index or not a.expanding:
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
