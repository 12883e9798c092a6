"""Swin (Liu et al. 2021, "Hierarchical Vision Transformer using Shifted Windows")."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from keras import ops

from tfft.backbones import pixels
from tfft.backbones.families import weight_map
from tfft.backbones.families.family import (
    Family,
    ImageDefaults,
    flag,
    number,
    numbers,
    patches,
    refuse,
)
from tfft.backbones.families.layers import Dropout, DropPath, SelfAttention, activation
from tfft.backbones.families.vision import VisionArchitecture, Weight, bicubic, layer_norm
from tfft.spec import HeadStyle, Stage
from tfft.utils.errors import UserError

_EPSILON = 1e-5  # of all norms outside of the blocks except the last
_MAX_SCORES = 1 << 26  # of all windows of a block; their mask is a constant in the graph
_MASKED_SCORE = -100.0  # added to scores across the border of a shifted map, as in the paper's code


@dataclass(frozen=True, kw_only=True)
class Architecture(VisionArchitecture):
    """Dimensions of a Swin transformer.

    Attributes:
        width: width of the first stage; it doubles with each stage.
        depths, heads: number of blocks and of attention heads in each stage.
        window: side of a window, in patches.
        ratio: width between the dense layers of a block, as a multiple of the block's.
        patch: height and width of a patch, in pixels.
        drop_path: rate of stochastic depth in the last block; it grows linearly from 0.
        grid: patches down and across in the images of the pretraining, if the network has absolute
            positions; else None.
    """

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    ratio: float
    patch: tuple[int, int]
    activation: str
    epsilon: float
    dropout: float
    attention_dropout: float
    drop_path: float
    qkv_bias: bool
    grid: tuple[int, int] | None

    @property
    def blocks(self) -> list[str]:
        """Names of the blocks, bottom to top."""
        return [f"block_{i}" for i in range(sum(self.depths))]

    @property
    def parameters(self) -> int:
        """Lower bound of the number of weights: its tables and matrices."""
        count = 3 * self.patch[0] * self.patch[1] * self.width
        for stage, _ in self.plan():
            width = self.width * 2**stage
            count += width * (4 * width + 2 * int(self.ratio * width))
            # The table of relative positions.
            count += (2 * self.window - 1) ** 2 * self.heads[stage]
        return count

    def plan(self) -> list[tuple[int, int]]:
        """Return (stage, index within the stage) for each block."""
        return [(stage, i) for stage, depth in enumerate(self.depths) for i in range(depth)]

    def build(self, precision: str) -> keras.Model:
        """Build `{image}` -> `{pooled [B, D], map [B, h, w, D]}` with random weights.

        Raises:
            UserError: The image has too many patches.
        """
        image, x = self.scaled_input()
        x = Embeddings(self, dtype=precision, name="embeddings")(x)
        if x.shape[1] * x.shape[2] * self.window**2 > _MAX_SCORES:
            raise UserError(f"model.image_size: {self.size} gives too many patches of {self.patch}")
        last = max(sum(self.depths) - 1, 1)
        for index, (name, (stage, i)) in enumerate(zip(self.blocks, self.plan(), strict=True)):
            if stage and i == 0:
                x = Merge(self.width * 2**stage, dtype=precision, name=f"merge_{stage}")(x)
            block = Block(
                self,
                self.width * 2**stage,
                self.heads[stage],
                x.shape[1:3],
                i % 2 == 1,
                self.drop_path * index / last,
                dtype=precision,
                name=name,
            )
            x = block(x)
        return pixels.encoder(image, layer_norm(self.epsilon, precision, "norm")(x))

    def stages(self) -> tuple[Stage, ...]:
        """Return the stages, bottom to top. Merging layers belong to the block after them."""
        stages = [Stage("stem", "embeddings/")]
        for name, (stage, i) in zip(self.blocks, self.plan(), strict=True):
            merge = f"|merge_{stage}" if stage and i == 0 else ""
            stages.append(Stage(name, f"(?:{name}{merge})/"))
        return (*stages, Stage("top", "norm/"))

    def with_dropout(self, rate: float) -> "Architecture":
        """Return a copy with this dropout rate everywhere."""
        return replace(self, dropout=rate, attention_dropout=rate)


class Embeddings(keras.layers.Layer):
    """Embedded patches, normalised, plus absolute positions if the network has them."""

    def __init__(self, a: Architecture, **kwargs: Any):
        super().__init__(**kwargs)
        dtype = self.dtype_policy
        self._patch_size, self._trained_grid = a.patch, a.grid
        self.patch = keras.layers.Conv2D(
            a.width, a.patch, strides=a.patch, dtype=dtype, name="patch"
        )
        self.norm = layer_norm(_EPSILON, dtype, "norm")
        self.position = None
        if a.grid is not None:
            shape = [1, a.grid[0] * a.grid[1], a.width]
            self.position = Weight(shape, "zeros", dtype=dtype, name="position")
        self.dropout = Dropout(a.dropout, dtype=dtype, name="dropout")
        self._width = a.width

    def build(self, shape):
        """Create the projection, the norm and the positions."""
        self.patch.build(shape)
        if self.position is not None:
            self.position.build()
        self.norm.build((None, None, None, self._width))
        self.built = True

    def call(self, x, training: bool = False):
        """Embed images, [B, H, W, 3] -> [B, h, w, D]."""
        # As in transformers, the padding is 0 after the scaling: the mean color.
        x = _pad_to_multiple(x, self._patch_size)
        x = self.norm(self.patch(x))
        if self.position is not None:
            x = x + ops.cast(self._positions(*x.shape[1:3]), x.dtype)
        return self.dropout(x, training=training)

    def _positions(self, height: int, width: int):
        rows, columns = self._trained_grid
        positions = ops.reshape(self.position.value, [rows, columns, self._width])
        if (height, width) == (rows, columns):
            return positions
        # First down, then across: [h, columns, D] -> [w, h, D].
        resized = ops.tensordot(bicubic(rows, height), ops.cast(positions, "float32"), 1)
        resized = ops.tensordot(bicubic(columns, width), ops.transpose(resized, [1, 0, 2]), 1)
        return ops.transpose(resized, [1, 0, 2])


class Merge(keras.layers.Layer):
    """Merge 2 x 2 neighbouring patches into one of twice the width."""

    def __init__(self, width: int, **kwargs: Any):
        super().__init__(**kwargs)
        self._width = width
        self.norm = layer_norm(_EPSILON, self.dtype_policy, "norm")
        self.reduce = keras.layers.Dense(
            width, use_bias=False, dtype=self.dtype_policy, name="reduce"
        )

    def build(self, shape):
        """Create the norm and the projection."""
        for layer in (self.norm, self.reduce):
            layer.build((*shape[:-1], 4 * shape[-1]))
        self.built = True

    def call(self, x):
        """Merge patches, [B, h, w, C] -> [B, h / 2, w / 2, 2 C]; odd sides round up."""
        x = _pad_to_multiple(x, (2, 2))
        _, h, w, c = x.shape
        x = ops.reshape(x, [-1, h // 2, 2, w // 2, 2, c])  # [B, h / 2, down, w / 2, across, C]
        # Down before across: the order of the channels in the checkpoint's kernel.
        x = ops.transpose(x, [0, 1, 3, 4, 2, 5])
        return self.reduce(self.norm(ops.reshape(x, [-1, h // 2, w // 2, 4 * c])))


class WindowAttention(SelfAttention):
    """Attention within windows, with a score bias by relative position.

    Args:
        window: side of a window in the pretraining, in patches.
        size: side of a window here; smaller if the map is smaller than `window`.
    """

    def __init__(self, *args: Any, window: int, size: int, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.positions = Weight(
            [(2 * window - 1) ** 2, self.heads], "zeros", dtype=self.dtype_policy, name="positions"
        )
        down, across = np.indices([size, size]).reshape(2, -1)  # each [N] for N = size^2
        # Offsets of the pretraining's window: a smaller window reads the middle of its table.
        relative = [p[:, None] - p[None] + window - 1 for p in (down, across)]
        self._index = relative[0] * (2 * window - 1) + relative[1]  # [N, N]

    def build(self, shape):
        """Create the projections and the table of relative positions."""
        super().build(shape)
        self.positions.build()

    def add_bias(self, scores, bias):
        """Return scores plus the relative-position bias and the shift mask.

        Args:
            scores: [B * windows, H, N, P + N] for N patches in a window and a prefix of P.
            bias: the shift mask, [windows, 1, N, P + N].
        """
        # A prefix has no position: its scores get no bias.
        position_bias = ops.take(ops.convert_to_tensor(self.positions.value), self._index, axis=0)
        # [N, N, H] -> [H, N, N]
        position_bias = ops.cast(ops.transpose(position_bias, [2, 0, 1]), "float32")
        prefix_length = scores.shape[-1] - scores.shape[-2]
        scores = scores + ops.pad(position_bias, [(0, 0), (0, 0), (prefix_length, 0)])
        num_windows = bias.shape[0]
        if num_windows == 1:
            return scores
        # [B, windows, H, N, P + N]
        by_window = ops.reshape(scores, [-1, num_windows, *scores.shape[1:]])
        return ops.reshape(by_window + ops.cast(bias, "float32"), [-1, *scores.shape[1:]])


class Block(keras.layers.Layer):
    """Block with attention in windows, shifted by half a window in every second block."""

    def __init__(
        self,
        a: Architecture,
        width: int,
        heads: int,
        grid: tuple[int, int],
        shifted: bool,
        drop_path: float,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        dtype = self.dtype_policy
        self._width, self._inner, self._grid = width, int(a.ratio * width), tuple(grid)
        # A window that covers the smaller side is not shifted.
        self._window = min(a.window, *grid)
        self._shift = a.window // 2 if shifted and min(grid) > a.window else 0
        self._activation = activation(a.activation)
        self.attention_norm = layer_norm(a.epsilon, dtype, "attention_norm")
        self.attention = WindowAttention(
            width,
            heads,
            a.attention_dropout,
            a.qkv_bias,
            window=a.window,
            size=self._window,
            dtype=dtype,
            name="attention",
        )
        self.output_norm = layer_norm(a.epsilon, dtype, "output_norm")
        self.up = keras.layers.Dense(self._inner, dtype=dtype, name="up")
        self.down = keras.layers.Dense(width, dtype=dtype, name="down")
        self.attention_dropout = Dropout(a.dropout, dtype=dtype, name="attention_dropout")
        self.output_dropout = Dropout(a.dropout, dtype=dtype, name="output_dropout")
        self.attention_path = DropPath(drop_path, dtype=dtype, name="attention_path")
        self.output_path = DropPath(drop_path, dtype=dtype, name="output_path")
        self._shift_mask = self._build_shift_mask()

    def build(self, _):
        """Create all sublayers."""
        shape = (None, None, self._width)
        for layer in (self.attention_norm, self.attention, self.output_norm, self.up):
            layer.build(shape)
        self.down.build((None, None, self._inner))
        self.built = True

    def call(self, x, training: bool = False):
        """Apply the block, [B, h, w, D] -> [B, h, w, D]."""
        (h, w), window, shift = self._grid, self._window, self._shift
        # Pad after the norm, as transformers does: padding enters attention as zeros.
        y = _pad_to_multiple(self.attention_norm(x), (window, window))
        rows, columns = y.shape[1] // window, y.shape[2] // window
        y = ops.roll(y, [-shift, -shift], [1, 2]) if shift else y
        # Windows become the batch: [B, rows, window, columns, window, D] -> [B * windows, N, D].
        y = ops.reshape(y, [-1, rows, window, columns, window, self._width])
        y = ops.reshape(ops.transpose(y, [0, 1, 3, 2, 4, 5]), [-1, window**2, self._width])
        y = self.attention(y, self._shift_mask, training=training)
        # Back to the map, then undo the shift, then drop the padding.
        y = ops.reshape(y, [-1, rows, columns, window, window, self._width])
        y = ops.transpose(y, [0, 1, 3, 2, 4, 5])
        y = ops.reshape(y, [-1, rows * window, columns * window, self._width])
        y = ops.roll(y, [shift, shift], [1, 2]) if shift else y
        y = self.attention_dropout(y[:, :h, :w], training=training)
        x = x + self.attention_path(y, training=training)
        y = self.down(self._activation(self.up(self.output_norm(x))))
        return x + self.output_path(self.output_dropout(y, training=training), training=training)

    def _build_shift_mask(self) -> np.ndarray:
        """Return the mask that is added to scores, float32 [windows, 1, N, N].

        Shifting wraps patches of opposite sides into one window; the mask separates them. Without
        a shift it is one window of zeros.
        """
        window, shift = self._window, self._shift
        if not shift:
            return np.zeros([1, 1, window**2, window**2], np.float32)
        sides = [-(-side // window) * window for side in self._grid]  # after padding
        # Region ids along a side: 0 outside of the last window, then 1, and 2 for wrapped patches.
        regions = [
            (np.arange(side) >= side - window).astype(int) + (np.arange(side) >= side - shift)
            for side in sides
        ]
        region_ids = regions[0][:, None] * 3 + regions[1][None]  # [h, w]
        windows = region_ids.reshape(sides[0] // window, window, sides[1] // window, window)
        windows = windows.transpose(0, 2, 1, 3).reshape(-1, window**2)  # [windows, N]
        same_region = windows[:, None, :, None] == windows[:, None, None]  # [windows, 1, N, N]
        return np.where(same_region, np.float32(0), np.float32(_MASKED_SCORE))


def _pad_to_multiple(x, step: tuple[int, int]):
    """Pad a map, [B, h, w, C], with zeros below and to the right, to multiples of `step`."""
    padding = [-size % s for size, s in zip(x.shape[1:3], step, strict=True)]
    return ops.pad(x, [(0, 0), (0, padding[0]), (0, padding[1]), (0, 0)]) if any(padding) else x


def architecture(config: Mapping[str, Any]) -> Architecture:
    """Return the architecture of config.json, with SwinConfig's defaults.

    Raises:
        UserError: A value is missing, out of bounds or unsupported.
    """
    refuse(config, "num_channels", (3,))
    depths = numbers(config, "depths", (2, 2, 6, 2))
    heads = numbers(config, "num_heads", (3, 6, 12, 24))
    if len(depths) != len(heads):
        raise UserError("config.json: depths and num_heads must have the same length")
    size, patch, grid = patches(config, 4)
    return Architecture(
        width=number(config, "embed_dim", 96),
        depths=depths,
        heads=heads,
        window=number(config, "window_size", 7),
        ratio=number(config, "mlp_ratio", 4.0, float),
        patch=patch,
        activation=str(config.get("hidden_act", "gelu")),
        epsilon=number(config, "layer_norm_eps", 1e-5, float),
        dropout=number(config, "hidden_dropout_prob", 0.0, float),
        attention_dropout=number(config, "attention_probs_dropout_prob", 0.0, float),
        drop_path=number(config, "drop_path_rate", 0.1, float),
        qkv_bias=flag(config, "qkv_bias", True),
        grid=grid if flag(config, "use_absolute_embeddings", False) else None,
        size=size,
    )


def build_weight_map(a: Architecture) -> weight_map.WeightMap:
    """Return the map from variable paths to SwinModel's tensor names."""
    entries = {
        **weight_map.conv("embeddings/patch", "embeddings.patch_embeddings.projection", bias=True),
        **weight_map.norm("embeddings/norm", "embeddings.norm"),
        **weight_map.norm("norm", "layernorm"),
    }
    if a.grid is not None:
        position = weight_map.Entry(("embeddings.position_embeddings",))
        entries["embeddings/position/value"] = position
    for stage in range(1, len(a.depths)):
        below = f"encoder.layers.{stage - 1}.downsample"
        entries |= weight_map.norm(f"merge_{stage}/norm", f"{below}.norm")
        kernel = weight_map.Entry((f"{below}.reduction.weight",), "transpose")
        entries[f"merge_{stage}/reduce/kernel"] = kernel
    for block, (stage, i) in zip(a.blocks, a.plan(), strict=True):
        layer = f"encoder.layers.{stage}.blocks.{i}"
        qkv = [f"{layer}.attention.self.{part}" for part in ("query", "key", "value")]
        table = f"{layer}.attention.self.relative_position_bias_table"
        entries |= {
            **weight_map.fused(f"{block}/attention/qkv", qkv, a.qkv_bias),
            **weight_map.dense(f"{block}/attention/out", f"{layer}.attention.output.dense"),
            f"{block}/attention/positions/value": weight_map.Entry((table,)),
            **weight_map.norm(f"{block}/attention_norm", f"{layer}.layernorm_before"),
            **weight_map.norm(f"{block}/output_norm", f"{layer}.layernorm_after"),
            **weight_map.dense(f"{block}/up", f"{layer}.intermediate.dense"),
            **weight_map.dense(f"{block}/down", f"{layer}.output.dense"),
        }
    return entries


FAMILY = Family(
    prefixes=("swin.",),
    architecture=architecture,
    weight_map=build_weight_map,
    head_style=HeadStyle("pooled"),
    head_weight_map=weight_map.dense("head/logits", "classifier"),
    classifier="SwinForImageClassification",
    image_defaults=ImageDefaults(None, "bicubic", pixels.IMAGENET_MEAN, pixels.IMAGENET_DEVIATION),
)
