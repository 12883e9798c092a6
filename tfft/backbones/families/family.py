"""The interface of a checkpoint family, and checked access to the values in its config.json."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from tfft.backbones.families.weight_map import WeightMap, dense
from tfft.spec import HeadStyle, Stage
from tfft.utils.errors import UserError, nearest
from tfft.utils.pretrained import MOST_TOKENS

if TYPE_CHECKING:
    import keras


class Architecture(Protocol):
    """Dimensions of a network, from which it is built. Implementations are frozen dataclasses.

    Attributes:
        dropped: names of the blocks to leave out.
    """

    dropped: frozenset[str]

    @property
    def blocks(self) -> list[str]:
        """Names of its blocks, bottom to top."""

    @property
    def parameters(self) -> int:
        """Lower bound of the number of weights: its tables and matrices."""

    def build(self, precision: str) -> "keras.Model":
        """Build the model with random weights; inputs and outputs as in `spec.Backbone.model`.

        Args:
            precision: a Keras dtype policy.
        """

    def stages(self) -> tuple[Stage, ...]:
        """Return the stages, bottom to top."""

    def with_dropout(self, rate: float) -> "Architecture":
        """Return a copy with this dropout rate everywhere.

        Raises:
            UserError: The network has no dropout.
        """

    def without(self, names: Sequence[str]) -> "Architecture":
        """Return a copy without some blocks.

        Raises:
            UserError: There are no such blocks, or the others need them.
        """


@dataclass(frozen=True)
class ImageDefaults:
    """Image preprocessing of a family, for checkpoints whose preprocessor_config.json lacks it.

    Attributes:
        crop_fraction: share of the shorter side in the centre crop; None: images are stretched.
        interpolation: `bilinear` or `bicubic`.
        mean, deviation: for each channel, with pixels from 0 to 1.
    """

    crop_fraction: float | None
    interpolation: str
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


# Kind of a head of tokens -> how the name of its class in transformers ends, and its tensors begin.
TOKEN_HEADS = {
    "tags": ("ForTokenClassification", "classifier"),
    "answers": ("ForQuestionAnswering", "qa_outputs"),
}


@dataclass(frozen=True)
class Family:
    """A Hugging Face `model_type`.

    Attributes:
        prefixes: possible prefixes of tensor names (`bert.` in a classifier's file).
        architecture: builds the architecture from config.json.
        weight_map: builds the encoder's map from variable paths to tensors.
        head_style: pooling and dense layer of the family's classifier.
        head_weight_map: map of the classification head; its tensor names have no prefix.
        classifier: class name that is written to `architectures` in a saved classifier.
        image_defaults: default preprocessing; None: the family reads text.
    """

    prefixes: tuple[str, ...]
    architecture: Callable[[Mapping[str, Any]], Architecture]
    weight_map: Callable[[Architecture], WeightMap]
    head_style: HeadStyle
    head_weight_map: WeightMap
    classifier: str
    image_defaults: ImageDefaults | None = None

    def with_head(self, kind: str) -> "Family":
        """Return the family with a head of a kind (`StoredHead.kind`).

        Those of tokens are one linear map: `tags` in XForTokenClassification, `answers` in
        XForQuestionAnswering.
        """
        if kind == "rows":
            return self
        suffix, tensor = TOKEN_HEADS[kind]
        return replace(
            self,
            head_style=HeadStyle("tokens"),
            head_weight_map=dense("head/logits", tensor),
            classifier=self.classifier.removesuffix("ForSequenceClassification") + suffix,
        )


def check_dropped(names: Sequence[str], blocks: Sequence[str]) -> frozenset[str]:
    """Check the blocks to leave out, and return them as a set.

    Args:
        names: blocks to leave out.
        blocks: all blocks.

    Raises:
        UserError: There is no such block, or no block would remain.
    """
    for name in names:
        if name not in blocks:
            raise UserError(f"model.surgery.drop: no block {name!r}{nearest(name, blocks)}")
    if len(set(names)) == len(blocks):
        raise UserError("model.surgery.drop: at least one block must remain")
    return frozenset(names)


# Smallest and largest value of each number in config.json. They admit all published networks, and
# keep what is computed from a hostile file small until its weights are compared with the config.
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
_MAX_STAGES = 8


def bounded(value: Any, name: str, bounds: tuple[float, float], kind: type = float) -> Any:
    """Check a number from a checkpoint's file and return it.

    Args:
        value: the value in the file, of any type.
        name: the file and the key, for errors.
        bounds: smallest and largest allowed value.
        kind: `int` for whole numbers, or `float`.

    Raises:
        UserError: It is not a number, or out of bounds.
    """
    # A bool is an int in Python.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{name} must be a number. Received: {value!r:.60}")
    low, high = bounds
    # NaN fails the first comparison, so `int(value)` is safe.
    if not low <= value <= high or (kind is int and value != int(value)):
        noun = "a whole number " if kind is int else ""
        raise UserError(f"{name} must be {noun}from {low} to {high}. Received: {value!r:.60}")
    return kind(value)


def number(config: Mapping[str, Any], key: str, default: Any = None, kind: type = int) -> Any:
    """Return a number from config.json, within `BOUNDS`.

    Raises:
        UserError: It is missing without a default, not of this kind, or out of bounds.
    """
    return bounded(config.get(key, default), f"config.json: {key}", BOUNDS[key], kind)


def flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    """Return a boolean from config.json. Null is false, as in transformers.

    Raises:
        UserError: It is not a boolean.
    """
    value = config.get(key, default)
    if value is not None and not isinstance(value, bool):
        raise UserError(f"config.json: {key} must be true or false. Received: {value!r:.60}")
    return bool(value)


def refuse(config: Mapping[str, Any], key: str, allowed: Sequence[Any]) -> None:
    """Refuse a variant that would load but compute other features.

    Args:
        config: the content of config.json.
        key: a key that may be missing.
        allowed: supported values; the first is the default.

    Raises:
        UserError: The value is not allowed.
    """
    value = config.get(key, allowed[0])
    if value not in allowed:
        raise UserError(f"config.json: {key}={value!r:.60} is not supported; allowed: {allowed}")


def numbers(config: Mapping[str, Any], key: str, default: Sequence[int]) -> tuple[int, ...]:
    """Return a list of whole numbers from config.json, within `BOUNDS`.

    Raises:
        UserError: It is not a list of 1 to 8 numbers, or one of them is out of bounds.
    """
    value = config.get(key, default)
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= _MAX_STAGES:
        raise UserError(
            f"config.json: {key} must be a list of 1 to {_MAX_STAGES} numbers. "
            f"Received: {value!r:.60}"
        )
    return tuple(bounded(v, f"config.json: {key}", BOUNDS[key], int) for v in value)


def pair(config: Mapping[str, Any], key: str, default: int) -> tuple[int, int]:
    """Return a height and a width from config.json, where one number means both.

    Raises:
        UserError: It is neither one number nor two, or out of bounds.
    """
    value = config.get(key, default)
    values = numbers({key: value if isinstance(value, list) else [value, value]}, key, ())
    if len(values) != 2:
        raise UserError(f"config.json: {key} must be one number or two. Received: {value!r:.60}")
    return values


def patches(config: Mapping[str, Any], patch: int) -> tuple[tuple[int, int], ...]:
    """Return image size, patch size and grid (patches down and across) from config.json.

    Args:
        config: the content of config.json.
        patch: default height and width of a patch.

    Raises:
        UserError: A patch is larger than the image.
    """
    size, patch_size = pair(config, "image_size", 224), pair(config, "patch_size", patch)
    grid = (size[0] // patch_size[0], size[1] // patch_size[1])
    if not all(grid):
        raise UserError(f"config.json: image_size {size} holds no patch of {patch_size}")
    return size, patch_size, grid
