"""A method of fine-tuning, its phases, and the masks that follow from their rules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tfft.spec.backbone import Stage

if TYPE_CHECKING:  # importing it at run time would load TensorFlow
    import keras


@dataclass(frozen=True)
class Rule:
    """A rule that decides whether the variables that it matches are trainable, and their rate.

    Attributes:
        match: a stage's name, a glob over variable paths, or `re:` and a regular expression.
        trainable: whether they are trainable.
        learning_rate: factor on the learning rate.
        origin: where the rule comes from, for the mask table.
    """

    match: str
    trainable: bool
    learning_rate: float = 1.0
    origin: str = "mask"


@dataclass(frozen=True)
class Phase:
    """A part of the training with a separate mask.

    Attributes:
        rules: the first one that matches a variable decides.
        start: a `config.Duration` from the start of the training; None: step 0.
        learning_rate: peak rate; None: `optimizer.learning_rate`.
        restart_schedule: whether the learning-rate schedule restarts here; it then lasts until the
            next such phase.
    """

    rules: tuple[Rule, ...]
    start: Any = None
    learning_rate: float | None = None
    restart_schedule: bool = False


@dataclass(frozen=True)
class Method:
    """A method of fine-tuning.

    Attributes:
        name: `method.name` in the YAML.
        apply: (model, stages with the head last, section `method`) -> phases in order. It may
            inject layers and change weights.
        identity: whether `apply` leaves the model's output unchanged until the first step.
        positions: (section `method`) -> number of positions that it takes before the text.
    """

    name: str
    apply: Callable[["keras.Model", tuple[Stage, ...], Any], tuple[Phase, ...]]
    identity: bool = True
    positions: Callable[[Any], int] = lambda _: 0


@dataclass(frozen=True)
class Mask:
    """The audited decision which variables of a model are trainable.

    Attributes:
        entries: one for each variable, in the model's order.
        learning_rates: variable path -> factor on the learning rate, where it is not 1.
    """

    entries: tuple["MaskEntry", ...]
    learning_rates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class MaskEntry:
    """The decision for one variable.

    Attributes:
        path: path of the variable.
        stage: name of its stage.
        size: number of its elements.
        trainable: whether it is trainable.
        learning_rate: factor on its learning rate.
        rule: the rule that decided.
    """

    path: str
    stage: str
    size: int
    trainable: bool
    learning_rate: float
    rule: Rule
