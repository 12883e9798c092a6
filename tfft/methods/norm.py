"""Norms and the head move.

Frankle, Schwab & Morcos 2021, "Training BatchNorm and Only BatchNorm"; for transformers Qi et al.
2022, "Parameter-Efficient Tuning on Layer Normalization for Pre-trained Language Models".
"""

from typing import Any

from tfft.spec import Method, Phase, Rule, Stage

_ORIGIN = "method norm"


def apply(_: Any, stages: tuple[Stage, ...], *__: Any) -> tuple[Phase, ...]:
    """One rule for the norms, one for the head."""
    rules = (
        Rule(stages[-1].name, trainable=True, origin=_ORIGIN),
        Rule("re:/(gamma|beta)$", trainable=True, origin=_ORIGIN),
        Rule("*", trainable=False, origin=_ORIGIN),
    )
    return (Phase(rules),)


METHOD = Method("norm", apply)
