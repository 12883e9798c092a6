"""Top stages: the top blocks and the head are trainable.

Lee, Tang & Lin 2019, "What Would Elsa Do?".
"""

from typing import Any

from tfft.config.methods import TopMethod
from tfft.model import masks
from tfft.spec import Method, Phase, Rule, Stage
from tfft.utils.errors import UserError


def apply(_: Any, stages: tuple[Stage, ...], config: TopMethod) -> tuple[Phase, ...]:
    """Return one phase that trains the top `config.stages` blocks and the stages above them.

    A pooler does not count as a block: it is part of how the features are read.

    Raises:
        UserError: the backbone has fewer blocks.
    """
    blocks = masks.block_indices(stages)
    if config.stages > len(blocks):
        raise UserError(
            f"method.stages: must be at most {len(blocks)}, the number of blocks; method: "
            f"{{name: full}} trains all. Received: {config.stages}"
        )
    lowest = blocks[-config.stages]
    trainable = (Rule(s.name, trainable=True, origin="method top") for s in stages[lowest:])
    return (Phase((*trainable, Rule("*", trainable=False, origin="method top"))),)


METHOD = Method("top", apply)
