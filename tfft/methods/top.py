"""The head and the top of the backbone move (Lee, Tang & Lin 2019, "What Would Elsa Do?")."""

from typing import Any

from tfft.config.methods import TopMethod
from tfft.model import masks
from tfft.spec import Method, Phase, Rule, Stage
from tfft.utils.errors import UserError


def apply(_: Any, stages: tuple[Stage, ...], config: TopMethod) -> tuple[Phase, ...]:
    """The top `config.stages` blocks move, and what stands above them: pooler and head.

    A pooler is not counted: it is part of how the features are read, not a block.
    """
    counted = masks.blocks(stages)
    if config.stages > len(counted):
        raise UserError(
            f"method.stages: the backbone has {len(counted)} blocks; received {config.stages}; "
            "method: {name: full} moves all"
        )
    lowest = counted[-config.stages]
    moving = (Rule(s.name, trainable=True, origin="method top") for s in stages[lowest:])
    return (Phase((*moving, Rule("*", trainable=False, origin="method top"))),)


METHOD = Method("top", apply)
