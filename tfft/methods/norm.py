"""Norms and the head move.

Frankle, Schwab & Morcos 2021, "Training BatchNorm and Only BatchNorm"; for transformers Qi et al.
2022, "Parameter-Efficient Tuning on Layer Normalization for Pre-trained Language Models".
"""

from typing import Any

from tfft.model import masks
from tfft.spec import Method, Phase, Stage


def apply(_: Any, stages: tuple[Stage, ...], *__: Any) -> tuple[Phase, ...]:
    """One rule for the norms, one for the head."""
    return masks.head_and(stages, "re:/(gamma|beta)$", "norm")


METHOD = Method("norm", apply)
