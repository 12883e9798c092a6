"""What a family of checkpoints must say of itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tfft.backbones.families.weight_map import WeightMap
from tfft.spec import HeadStyle, Stage
from tfft.utils.errors import UserError, nearest
from tfft.utils.pretrained import MOST_TOKENS

if TYPE_CHECKING:
    import keras


class Architecture(Protocol):
    """The numbers of a network, and the network from them: a frozen dataclass.

    Attributes:
        blocks: names of its blocks, bottom to top.
        dropped: those that are left out.
    """

    dropped: frozenset[str]

    @property
    def blocks(self) -> list[str]:
        """See the class."""

    @property
    def parameters(self) -> int:
        """How many weights it has at least: those of its tables and matrices."""

    def build(self, precision: str) -> "keras.Model":
        """With fresh weights: inputs and outputs as `spec.Backbone.model` says."""

    def stages(self) -> tuple[Stage, ...]:
        """Bottom to top."""

    def features(self) -> Mapping[str, int]:
        """Widths of the outputs."""

    def with_dropout(self, rate: float) -> "Architecture":
        """With this rate everywhere.

        Raises:
            UserError: it has no dropout.
        """

    def without(self, names: Sequence[str]) -> "Architecture":
        """With some blocks left out.

        Raises:
            UserError: there are no such blocks, or the others need them.
        """


@dataclass(frozen=True)
class ImageDefaults:
    """How a family's authors showed it pictures, where preprocessor_config.json says nothing.

    Attributes:
        keep: the share of the shorter side that is kept; None: pictures are stretched.
        interpolation: `bilinear` or `bicubic`.
        mean, deviation: of each channel, in pixels from 0 to 1.
    """

    crop_fraction: float | None
    interpolation: str
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


@dataclass(frozen=True)
class Family:
    """A `model_type` of Hugging Face.

    Attributes:
        prefixes: what may stand before the tensors' names (`bert.` in a classifier's file).
        architecture: config.json -> the encoder's numbers.
        names: the encoder's name table.
        head_style: what the family's classifier does before its logits.
        head_names: name table of the classification head, from the root of the file.
        classifier: the class name written to `architectures` when a classifier is saved.
        eyes: of a family of pictures; None: it reads text.
    """

    prefixes: tuple[str, ...]
    architecture: Callable[[Mapping[str, Any]], Architecture]
    names: Callable[[Architecture], WeightMap]
    head_style: HeadStyle
    head_names: WeightMap
    classifier: str
    image_defaults: ImageDefaults | None = None


def droppable(names: Sequence[str], blocks: Sequence[str]) -> frozenset[str]:
    """Names of blocks that may be left out.

    Raises:
        UserError: there is no such block, or none would be left.
    """
    for name in names:
        if name not in blocks:
            raise UserError(f"model.surgery.drop: no block {name!r}{nearest(name, blocks)}")
    if len(set(names)) == len(blocks):
        raise UserError("model.surgery.drop: one block must be left at least")
    return frozenset(names)


# The smallest and the largest value of each number of config.json: beyond all published networks,
# and small enough that what is computed from them before the weights are looked at stays small.
_SHARE, _WIDTH, _DEPTH, _HEADS, _PIXELS = (0, 0.999), (1, 1 << 16), (1, 1000), (1, 1024), (1, 4096)
BOUNDS: Mapping[str, tuple[float, float]] = {
    "attention_dropout": _SHARE,
    "attention_probs_dropout_prob": _SHARE,
    "depth_divisible_by": (1, 1024),
    "depth_multiplier": (0.01, 16),
    "depths": _DEPTH,
    "dim": _WIDTH,
    "drop_path_rate": _SHARE,
    "dropout": _SHARE,
    "embed_dim": _WIDTH,
    "embedding_size": _WIDTH,
    "expand_ratio": (0.1, 64),
    "hidden_dim": (1, 1 << 18),
    "hidden_dropout_prob": _SHARE,
    "hidden_size": _WIDTH,
    "hidden_sizes": _WIDTH,
    "image_size": _PIXELS,
    "inner_group_num": (1, 16),
    "intermediate_size": (1, 1 << 18),
    "layer_norm_eps": (0, 1),
    "layer_scale_init_value": (-1, 1e6),
    "max_position_embeddings": (2, 1 << 20),
    "min_depth": (1, 1 << 12),
    "mlp_ratio": (0.01, 64),
    "n_heads": _HEADS,
    "n_layers": _DEPTH,
    "num_attention_heads": _HEADS,
    "num_heads": _HEADS,
    "num_hidden_groups": _DEPTH,
    "num_hidden_layers": _DEPTH,
    "output_stride": (2, 32),
    "pad_token_id": (0, MOST_TOKENS - 1),
    "patch_size": _PIXELS,
    "type_vocab_size": (0, 1 << 16),
    "vocab_size": (1, MOST_TOKENS),
    "window_size": (1, 32),
}
_MOST_STAGES = 8


def bounded(value: Any, name: str, bounds: tuple[float, float], kind: type = float) -> Any:
    """Return a number that a checkpoint's file holds.

    Args:
        name: the file and the key, for errors.
        bounds: the smallest and the largest that is allowed.
        kind: `int` for whole numbers, or `float`.

    Raises:
        UserError: it is none, or lies outside of the bounds.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{name} must be a number. Received: {value!r:.60}")
    low, high = bounds
    if not low <= value <= high or (kind is int and value != int(value)):  # NaN is in no bounds
        whole = "a whole number " if kind is int else ""
        raise UserError(f"{name} must be {whole}from {low} to {high}. Received: {value!r:.60}")
    return kind(value)


def number(config: Mapping[str, Any], key: str, default: Any = None, kind: type = int) -> Any:
    """A number of config.json.

    Raises:
        UserError: it is missing without a default, of another kind, or outside of its bounds.
    """
    return bounded(config.get(key, default), f"config.json: {key}", BOUNDS[key], kind)


def flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    """A truth value of config.json; null is false, as transformers reads it.

    Raises:
        UserError: it is none.
    """
    value = config.get(key, default)
    if value is not None and not isinstance(value, bool):
        raise UserError(f"config.json: {key} must be true or false. Received: {value!r:.60}")
    return bool(value)


def refuse(config: Mapping[str, Any], key: str, allowed: Sequence[Any]) -> None:
    """Stop at a variant that would load but not compute the same.

    Raises:
        UserError: the value is none of those allowed.
    """
    value = config.get(key, allowed[0])
    if value not in allowed:
        raise UserError(f"config.json: {key}={value!r:.60} is not supported; allowed: {allowed}")


def numbers(config: Mapping[str, Any], key: str, default: Sequence[int]) -> tuple[int, ...]:
    """A list of numbers of config.json.

    Raises:
        UserError: it is none, or one of them is outside of its bounds.
    """
    value = config.get(key, default)
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= _MOST_STAGES:
        raise UserError(
            f"config.json: {key} must be a list of 1 to {_MOST_STAGES} numbers. "
            f"Received: {value!r:.60}"
        )
    return tuple(bounded(v, f"config.json: {key}", BOUNDS[key], int) for v in value)


def two(config: Mapping[str, Any], key: str, default: int) -> tuple[int, int]:
    """A height and width of config.json, where one number stands for both.

    Raises:
        UserError: it is neither.
    """
    value = config.get(key, default)
    both = numbers({key: value if isinstance(value, list) else [value, value]}, key, ())
    if len(both) != 2:
        raise UserError(f"config.json: {key} must be one number or two. Received: {value!r:.60}")
    return both


def patches(config: Mapping[str, Any], patch: int) -> tuple[tuple[int, int], ...]:
    """Return the size of the pictures in config.json, that of a patch, and how many fit.

    Args:
        patch: its height and width where config.json does not say it.

    Raises:
        UserError: none fits.
    """
    size, step = two(config, "image_size", 224), two(config, "patch_size", patch)
    grid = (size[0] // step[0], size[1] // step[1])
    if not all(grid):
        raise UserError(f"config.json: image_size {size} holds no patch of {step}")
    return size, step, grid
