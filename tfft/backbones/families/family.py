"""What a family of checkpoints must say of itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tfft.backbones.families.names import Table
from tfft.errors import UserError, nearest
from tfft.spec import HeadStyle, Stage

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
class Eyes:
    """How a family's authors showed it pictures, where preprocessor_config.json says nothing.

    Attributes:
        keep: the share of the shorter side that is kept; None: pictures are stretched.
        interpolation: `bilinear` or `bicubic`.
        mean, deviation: of each channel, in pixels from 0 to 1.
    """

    keep: float | None
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
    names: Callable[[Architecture], Table]
    head_style: HeadStyle
    head_names: Table
    classifier: str
    eyes: Eyes | None = None


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


def number(config: Mapping[str, Any], key: str, default: Any = None, kind: type = int) -> Any:
    """A number of config.json.

    Raises:
        UserError: it is missing without a default, or of another kind.
    """
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"config.json: {key} must be a number. Received: {value!r}")
    return kind(value)


def refuse(config: Mapping[str, Any], key: str, allowed: Sequence[Any]) -> None:
    """Stop at a variant that would load but not compute the same.

    Raises:
        UserError: the value is none of those allowed.
    """
    value = config.get(key, allowed[0])
    if value not in allowed:
        raise UserError(f"config.json: {key}={value!r} is not supported; allowed: {allowed}")


def numbers(config: Mapping[str, Any], key: str, default: Sequence[int]) -> tuple[int, ...]:
    """A list of numbers of config.json.

    Raises:
        UserError: it is none.
    """
    value = config.get(key, default)
    if not isinstance(value, list | tuple) or not all(type(v) is int and v > 0 for v in value):
        raise UserError(f"config.json: {key} must be a list of numbers. Received: {value!r}")
    return tuple(value)


def two(config: Mapping[str, Any], key: str, default: int) -> tuple[int, int]:
    """A height and width of config.json, where one number stands for both.

    Raises:
        UserError: it is neither.
    """
    value = config.get(key, default)
    both = numbers({key: [value, value] if isinstance(value, int) else value}, key, ())
    if len(both) != 2:
        raise UserError(f"config.json: {key} must be one number or two. Received: {value!r}")
    return both
