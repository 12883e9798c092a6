"""Normalization layers and the head are trainable.

Frankle, Schwab & Morcos 2021, "Training BatchNorm and Only BatchNorm"; for transformers Qi et al.
2022, "Parameter-Efficient Tuning on Layer Normalization for Pre-trained Language Models".
"""

from typing import Any

from tfft.model import masks
from tfft.spec import Method, Phase, Stage


def apply(_: Any, stages: tuple[Stage, ...], *__: Any) -> tuple[Phase, ...]:
    """Return one phase that trains gamma, beta and the head."""
    return masks.head_and_matches(stages, "re:/(gamma|beta)$", "norm")


METHOD = Method("norm", apply)
