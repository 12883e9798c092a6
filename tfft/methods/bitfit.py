"""Biases and the head move.

Ben Zaken, Ravfogel & Goldberg 2022, "BitFit: Simple Parameter-efficient Fine-tuning for
Transformer-based Masked Language-models". The offsets of norms are biases too.
"""

from typing import Any

from tfft.model import masks
from tfft.spec import Method, Phase, Stage


def apply(_: Any, stages: tuple[Stage, ...], *__: Any) -> tuple[Phase, ...]:
    """One rule for the biases, one for the head."""
    return masks.head_and(stages, "re:/(bias|beta)$", "bitfit")


METHOD = Method("bitfit", apply)
