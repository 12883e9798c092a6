"""Vision transformers: ViT (Dosovitskiy et al. 2021), DeiT (Touvron et al. 2021, "Training
data-efficient image transformers") and DINOv2 (Oquab et al. 2024)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
from keras import ops

from tfft.backbones.families import weight_map
from tfft.backbones.families.family import (
    Family,
    ImageDefaults,
    check_dropped,
    flag,
    number,
    patches,
    refuse,
)
from tfft.backbones.families.layers import Dropout, DropPath, SelfAttention, activation
from tfft.backbones.families.vision import VisionArchitecture, Weight, bicubic, layer_norm
from tfft.backbones.pixels import IMAGENET_DEVIATION, IMAGENET_MEAN
from tfft.spec import HeadStyle, Stage
from tfft.utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Architecture(VisionArchitecture):
    """Dimensions of a vision transformer.

    Attributes:
        inner: width between the two dense layers of a block; with `gated`, of each half.
        patch: height and width of a patch, in pixels.
        grid: patches down and across in the images of the pretraining.
        distilled: whether there is a distillation token after the class token (DeiT).
        pooled: the vector for a classifier: `first` (the class token), `both` (DeiT's two tokens)
            or `first_and_mean` (the class token and the mean of the patches, DINOv2).
        scaled: whether residual branches have a factor per channel (LayerScale, DINOv2).
        gated: whether the dense layers are SwiGLU (Shazeer 2020).
        drop_path: rate of stochastic depth.
    """

    width: int
    layers: int
    heads: int
    inner: int
    patch: tuple[int, int]
    grid: tuple[int, int]
    activation: str
    epsilon: float
    dropout: float
    attention_dropout: float
    qkv_bias: bool
    distilled: bool = False
    pooled: str = "first"
    scaled: bool = False
    gated: bool = False
    drop_path: float = 0.0

    @property
    def blocks(self) -> list[str]:
        """Names of the blocks, bottom to top."""
        return [f"block_{i}" for i in range(self.layers)]

    @property
    def parameters(self) -> int:
        """Lower bound of the number of weights: its tables and matrices."""
        embeddings = self.grid[0] * self.grid[1] + 3 * self.patch[0] * self.patch[1]
        block = 4 * self.width + (3 if self.gated else 2) * self.inner
        return self.width * (embeddings + self.layers * block)

    def build(self, precision: str) -> keras.Model:
        """Build `{image}` -> `{sequence [B, T, D], pooled [B, D or 2 D], map [B, h, w, D]}`.

        Raises:
            UserError: The image is smaller than a patch.
        """
        image, x = self.scaled_input()
        embeddings = Embeddings(self, dtype=precision, name="embeddings")
        if not all(embeddings.grid):
            raise UserError(f"model.image_size: {self.size} holds no patch of {self.patch}")
        x = embeddings(x)
        for name in self.blocks:
            if name not in self.dropped:
                x = Block(self, dtype=precision, name=name)(x)
        x = layer_norm(self.epsilon, precision, "norm")(x)
        patches = x[:, embeddings.extra :]  # [B, h * w, D]
        if self.pooled == "first_and_mean":
            parts = [x[:, 0], ops.mean(patches, axis=1)]
        else:
            parts = [x[:, 0], x[:, 1]] if self.pooled == "both" else [x[:, 0]]
        pooled = ops.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
        feature_map = ops.reshape(patches, [-1, *embeddings.grid, self.width])
        features = {"sequence": x, "pooled": pooled, "map": feature_map}
        return keras.Model({"image": image}, features, name="encoder")

    def stages(self) -> tuple[Stage, ...]:
        """Return the stages, bottom to top."""
        remaining = [name for name in self.blocks if name not in self.dropped]
        return (
            Stage("stem", "embeddings/"),
            *(Stage(name, f"{name}/") for name in remaining),
            Stage("top", "norm/"),
        )

    def with_dropout(self, rate: float) -> "Architecture":
        """Return a copy with this dropout rate everywhere."""
        return replace(self, dropout=rate, attention_dropout=rate)

    def without(self, names: Sequence[str]) -> "Architecture":
        """Return a copy without some blocks.

        Raises:
            UserError: There are no such blocks, or none would remain.
        """
        return replace(self, dropped=check_dropped(names, self.blocks))


class Embeddings(keras.layers.Layer):
    """Embedded patches after one or two special tokens, plus positions.

    For images of another size than in the pretraining, positions are interpolated, as with
    transformers' `interpolate_pos_encoding`.

    Attributes:
        extra: number of tokens before the patches.
        grid: patches down and across.
    """

    def __init__(self, a: Architecture, **kwargs: Any):
        super().__init__(**kwargs)
        dtype, width = self.dtype_policy, a.width
        self.extra = 2 if a.distilled else 1
        # Pixels beyond the last complete patch are cut off, as by the convolution.
        self.grid = (a.size[0] // a.patch[0], a.size[1] // a.patch[1])
        self._trained_grid = a.grid
        self.patch = keras.layers.Conv2D(width, a.patch, strides=a.patch, dtype=dtype, name="patch")
        self.token = Weight([1, 1, width], "zeros", dtype=dtype, name="token")
        self.second = (
            Weight([1, 1, width], "zeros", dtype=dtype, name="second") if a.distilled else None
        )
        num_positions = self.extra + a.grid[0] * a.grid[1]
        initializer = keras.initializers.TruncatedNormal(stddev=0.02)
        self.position = Weight([1, num_positions, width], initializer, dtype=dtype, name="position")
        self.dropout = Dropout(a.dropout, dtype=dtype, name="dropout")
        self._width = width

    def build(self, shape):
        """Create the projection, the tokens and the positions."""
        self.patch.build(shape)
        for weight in (self.token, self.second, self.position):
            if weight is not None:
                weight.build()
        self.built = True

    def call(self, x, training: bool = False):
        """Embed images, [B, H, W, 3] -> [B, T, D]."""
        # [B, h, w, D] -> [B, h * w, D]
        x = ops.reshape(self.patch(x), [-1, self.grid[0] * self.grid[1], self._width])
        tokens = [t.value for t in (self.token, self.second) if t is not None]
        tokens = [ops.tile(ops.cast(t, x.dtype), [ops.shape(x)[0], 1, 1]) for t in tokens]
        x = ops.concatenate([*tokens, x], axis=1)  # [B, T, D]
        return self.dropout(x + ops.cast(self._positions(), x.dtype), training=training)

    def _positions(self):
        positions = ops.convert_to_tensor(self.position.value)
        if self.grid == self._trained_grid:
            return positions
        # Interpolate in float32 whatever the precision, first down, then across.
        (rows, columns), (h, w) = self._trained_grid, self.grid
        patches = ops.reshape(
            ops.cast(positions[0, self.extra :], "float32"), [rows, columns, self._width]
        )
        patches = ops.tensordot(bicubic(rows, h), patches, 1)  # [h, columns, D]
        patches = ops.tensordot(bicubic(columns, w), ops.transpose(patches, [1, 0, 2]), 1)
        patches = ops.reshape(ops.transpose(patches, [1, 0, 2]), [1, h * w, self._width])
        # The special tokens keep their positions.
        return ops.concatenate(
            [positions[:, : self.extra], ops.cast(patches, positions.dtype)], axis=1
        )


class Block(keras.layers.Layer):
    """Encoder block with a norm before each residual branch (pre-norm)."""

    def __init__(self, a: Architecture, **kwargs: Any):
        super().__init__(**kwargs)
        dtype, width = self.dtype_policy, a.width
        self._width, self._inner, self._gated = width, a.inner, a.gated
        # SwiGLU gates with SiLU, whatever `hidden_act` says.
        self._activation = activation("silu" if a.gated else a.activation)
        self.attention_norm = layer_norm(a.epsilon, dtype, "attention_norm")
        self.attention = SelfAttention(
            width, a.heads, a.attention_dropout, a.qkv_bias, dtype=dtype, name="attention"
        )
        self.output_norm = layer_norm(a.epsilon, dtype, "output_norm")
        self.up = keras.layers.Dense(a.inner * (2 if a.gated else 1), dtype=dtype, name="up")
        self.down = keras.layers.Dense(width, dtype=dtype, name="down")
        self.attention_scale = self.output_scale = None
        if a.scaled:
            self.attention_scale = Weight([width], "ones", dtype=dtype, name="attention_scale")
            self.output_scale = Weight([width], "ones", dtype=dtype, name="output_scale")
        self.attention_dropout = Dropout(a.dropout, dtype=dtype, name="attention_dropout")
        self.output_dropout = Dropout(a.dropout, dtype=dtype, name="output_dropout")
        self.attention_path = DropPath(a.drop_path, dtype=dtype, name="attention_path")
        self.output_path = DropPath(a.drop_path, dtype=dtype, name="output_path")

    def build(self, _):
        """Create all sublayers."""
        shape = (None, None, self._width)
        for layer in (self.attention_norm, self.attention, self.output_norm, self.up):
            layer.build(shape)
        self.down.build((None, None, self._inner))
        for weight in (self.attention_scale, self.output_scale):
            if weight is not None:
                weight.build()
        self.built = True

    def call(self, x, training: bool = False):
        """Apply the block, [B, T, D] -> [B, T, D]."""
        y = self.attention(self.attention_norm(x), training=training)
        y = self.attention_dropout(y, training=training)
        if self.attention_scale is not None:
            y = self.attention_scale(y)
        x = x + self.attention_path(y, training=training)
        y = self.up(self.output_norm(x))
        if self._gated:
            # As transformers' Dinov2SwiGLUFFN: the first half is the gate.
            gate, y = ops.split(y, 2, axis=-1)
            y = self._activation(gate) * y
        else:
            y = self._activation(y)
        y = self.output_dropout(self.down(y), training=training)
        if self.output_scale is not None:
            y = self.output_scale(y)
        return x + self.output_path(y, training=training)

    def attended(self, x):
        """Return the attention of each token to each, the mean over heads, float32 [B, T, T]."""
        weights, _ = self.attention.weights_and_values(self.attention_norm(x))
        return ops.mean(weights, axis=1)  # [B, H, T, T] -> [B, T, T]


def _architecture(config: Mapping[str, Any], **overrides: Any) -> Architecture:
    refuse(config, "num_channels", (3,))
    size, patch, grid = patches(config, 16)
    return Architecture(
        **{
            "width": number(config, "hidden_size", 768),
            "layers": number(config, "num_hidden_layers", 12),
            "heads": number(config, "num_attention_heads", 12),
            "inner": number(config, "intermediate_size", 3072),
            "patch": patch,
            "grid": grid,
            "activation": str(config.get("hidden_act", "gelu")),
            "epsilon": number(config, "layer_norm_eps", 1e-12, float),
            "dropout": number(config, "hidden_dropout_prob", 0.0, float),
            "attention_dropout": number(config, "attention_probs_dropout_prob", 0.0, float),
            "qkv_bias": flag(config, "qkv_bias", True),
            "size": size,
            **overrides,
        }
    )


def _dinov2(config: Mapping[str, Any]) -> Architecture:
    width = number(config, "hidden_size", 768)
    inner, gated = width * number(config, "mlp_ratio", 4), flag(config, "use_swiglu_ffn", False)
    if gated:  # two thirds, rounded up to a multiple of 8, as in transformers
        inner = (inner * 2 // 3 + 7) // 8 * 8
    # Dinov2Config's defaults, where they differ from ViTConfig's.
    return _architecture(
        {"patch_size": 14, "layer_norm_eps": 1e-6, **config},
        inner=inner,
        gated=gated,
        scaled=True,
        pooled="first_and_mean",
        drop_path=number(config, "drop_path_rate", 0.0, float),
    )


def build_weight_map(a: Architecture) -> weight_map.WeightMap:
    """Return the map from variable paths to tensors of ViTModel, DeiTModel and Dinov2Model."""
    entry = weight_map.Entry
    entries = {
        **weight_map.conv("embeddings/patch", "embeddings.patch_embeddings.projection", bias=True),
        "embeddings/token/value": entry(("embeddings.cls_token",)),
        "embeddings/position/value": entry(("embeddings.position_embeddings",)),
        **weight_map.norm("norm", "layernorm"),
    }
    if a.distilled:
        entries["embeddings/second/value"] = entry(("embeddings.distillation_token",))
    norms = ("norm1", "norm2") if a.scaled else ("layernorm_before", "layernorm_after")
    dense = ("intermediate.dense", "output.dense")
    if a.scaled:
        dense = ("mlp.weights_in", "mlp.weights_out") if a.gated else ("mlp.fc1", "mlp.fc2")
    for index, block in enumerate(a.blocks):
        layer = f"encoder.layer.{index}"
        qkv = [f"{layer}.attention.attention.{part}" for part in ("query", "key", "value")]
        entries |= {
            **weight_map.fused(f"{block}/attention/qkv", qkv, a.qkv_bias),
            **weight_map.dense(f"{block}/attention/out", f"{layer}.attention.output.dense"),
            **weight_map.norm(f"{block}/attention_norm", f"{layer}.{norms[0]}"),
            **weight_map.norm(f"{block}/output_norm", f"{layer}.{norms[1]}"),
            **weight_map.dense(f"{block}/up", f"{layer}.{dense[0]}"),
            **weight_map.dense(f"{block}/down", f"{layer}.{dense[1]}"),
        }
        if a.scaled:
            entries[f"{block}/attention_scale/value"] = entry((f"{layer}.layer_scale1.lambda1",))
            entries[f"{block}/output_scale/value"] = entry((f"{layer}.layer_scale2.lambda1",))
    return entries


_HALF = (0.5, 0.5, 0.5)
VIT = Family(
    prefixes=("vit.",),
    architecture=_architecture,
    weight_map=build_weight_map,
    head_style=HeadStyle("pooled"),
    head_weight_map=weight_map.dense("head/logits", "classifier"),
    classifier="ViTForImageClassification",
    image_defaults=ImageDefaults(None, "bilinear", _HALF, _HALF),
)
DEIT = replace(
    VIT,
    prefixes=("deit.",),
    architecture=lambda config: _architecture(config, distilled=True),
    classifier="DeiTForImageClassification",
    image_defaults=ImageDefaults(0.875, "bicubic", IMAGENET_MEAN, IMAGENET_DEVIATION),
)
# Its logits are the mean of two classifiers, one per token.
DEIT_WITH_TEACHER = replace(
    DEIT,
    architecture=lambda config: _architecture(config, distilled=True, pooled="both"),
    head_weight_map={
        f"head/logits/{variable}": weight_map.Entry(
            tuple(f"{token}_classifier.{tensor}" for token in ("cls", "distillation")), "averaged"
        )
        for variable, tensor in (("kernel", "weight"), ("bias", "bias"))
    },
    classifier="DeiTForImageClassificationWithTeacher",
)
DINOV2 = replace(
    VIT,
    prefixes=("dinov2.",),
    architecture=_dinov2,
    classifier="Dinov2ForImageClassification",
    image_defaults=ImageDefaults(0.875, "bicubic", IMAGENET_MEAN, IMAGENET_DEVIATION),
)
