"""LP-FT: a linear probe, then full fine-tuning from it.

Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-
Distribution": gradients of a random head distort the features, those of a fitted head do not.
"""

from typing import Any

from tfft.config import Duration
from tfft.config.methods import LpFtMethod
from tfft.spec import Method, Phase, Rule, Stage

_ORIGIN = "method lp_ft"


def apply(_: Any, stages: tuple[Stage, ...], config: LpFtMethod) -> tuple[Phase, ...]:
    """Return two phases; the learning rate schedule restarts in each, over its length."""
    probe = (
        Rule(stages[-1].name, trainable=True, origin=_ORIGIN),
        Rule("*", trainable=False, origin=_ORIGIN),
    )
    return (
        Phase(probe, Duration(0, "steps"), config.probe_learning_rate, restart_schedule=True),
        Phase((Rule("*", trainable=True, origin=_ORIGIN),), config.probe, restart_schedule=True),
    )


METHOD = Method("lp_ft", apply)
