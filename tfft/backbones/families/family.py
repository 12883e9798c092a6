"""What a family of checkpoints must say of itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfft.backbones.families.encoder import Architecture
from tfft.backbones.families.names import Table
from tfft.errors import UserError
from tfft.spec import HeadStyle


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
    """

    prefixes: tuple[str, ...]
    architecture: Callable[[Mapping[str, Any]], Architecture]
    names: Callable[[Architecture], Table]
    head_style: HeadStyle
    head_names: Table
    classifier: str


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
