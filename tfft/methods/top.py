"""The head and the top of the backbone move (Lee, Tang & Lin 2019, "What Would Elsa Do?")."""

from tfft.config.sections import TopMethod
from tfft.errors import UserError
from tfft.spec import Method, Rule, Stage


def apply(stages: tuple[Stage, ...], config: TopMethod) -> tuple[Rule, ...]:
    """The top `config.stages` blocks move, and what stands above them: pooler and head.

    A pooler is not counted: it is part of how the features are read, not a block.
    """
    blocks = [i for i, stage in enumerate(stages[:-1]) if stage.name.startswith("block_")]
    counted = blocks or list(range(len(stages) - 1))
    if config.stages > len(counted):
        raise UserError(
            f"method.stages: the backbone has {len(counted)} blocks; received {config.stages}; "
            "method: {name: full} moves all"
        )
    lowest = counted[-config.stages]
    moving = (Rule(s.name, trainable=True, origin="method top") for s in stages[lowest:])
    return (*moving, Rule("*", trainable=False, origin="method top"))


METHOD = Method("top", apply)
