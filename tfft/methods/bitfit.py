"""BitFit: biases and the head are trainable.

Ben Zaken, Ravfogel & Goldberg 2022, "BitFit: Simple Parameter-efficient Fine-tuning for
Transformer-based Masked Language-models". The beta of a normalization counts as a bias.
"""

from typing import Any

from tfft.model import masks
from tfft.spec import Method, Phase, Stage


def apply(_: Any, stages: tuple[Stage, ...], *__: Any) -> tuple[Phase, ...]:
    """Return one phase that trains the biases and the head."""
    return masks.head_and_matches(stages, "re:/(bias|beta)$", "bitfit")


METHOD = Method("bitfit", apply)
