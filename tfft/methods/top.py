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

    Of two backbones, the top blocks of each. A pooler does not count as a block: it is part of how
    the features are read.

    Raises:
        UserError: a backbone has fewer blocks.
    """
    blocks, depth = masks.num_blocks(stages), masks.depths(stages)
    if config.stages > blocks:
        raise UserError(
            f"method.stages: must be at most {blocks}, the number of blocks; method: "
            f"{{name: full}} trains all. Received: {config.stages}"
        )
    top = [stage.name for stage in stages if depth[stage.name] <= config.stages]
    trainable = (Rule(name, trainable=True, origin="method top") for name in top)
    return (Phase((*trainable, Rule("*", trainable=False, origin="method top"))),)


METHOD = Method("top", apply)
