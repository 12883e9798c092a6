"""Biases and the head move.

Ben Zaken, Ravfogel & Goldberg 2022, "BitFit: Simple Parameter-efficient Fine-tuning for
Transformer-based Masked Language-models". The offsets of norms are biases too.
"""

from typing import Any

from tfft.spec import Method, Phase, Rule, Stage

_ORIGIN = "method bitfit"


def apply(_: Any, stages: tuple[Stage, ...], *__: Any) -> tuple[Phase, ...]:
    """One rule for the biases, one for the head."""
    rules = (
        Rule(stages[-1].name, trainable=True, origin=_ORIGIN),
        Rule("re:/(bias|beta)$", trainable=True, origin=_ORIGIN),
        Rule("*", trainable=False, origin=_ORIGIN),
    )
    return (Phase(rules),)


METHOD = Method("bitfit", apply)
