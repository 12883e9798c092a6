"""A linear probe, then full fine-tuning from there.

Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-
Distribution": a random head's gradient distorts the features; one that was fitted first does not.
"""

from typing import Any

from tfft.config import Duration
from tfft.config.methods import LpFtMethod
from tfft.spec import Method, Phase, Rule, Stage

_ORIGIN = "method lp_ft"


def apply(_: Any, stages: tuple[Stage, ...], config: LpFtMethod) -> tuple[Phase, ...]:
    """Two phases, each with the whole schedule over its own length."""
    probe = (
        Rule(stages[-1].name, trainable=True, origin=_ORIGIN),
        Rule("*", trainable=False, origin=_ORIGIN),
    )
    return (
        Phase(probe, Duration(0, "steps"), config.probe_learning_rate, restart_schedule=True),
        Phase((Rule("*", trainable=True, origin=_ORIGIN),), config.probe, restart_schedule=True),
    )


METHOD = Method("lp_ft", apply)
