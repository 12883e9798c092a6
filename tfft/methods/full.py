"""Every variable moves (Howard & Ruder 2018 call it full fine-tuning)."""

from typing import Any

from tfft.spec import Method, Rule, Stage


def apply(stages: tuple[Stage, ...], _: Any) -> tuple[Rule, ...]:
    """One rule for all."""
    return (Rule("*", trainable=True, origin="method full"),)


METHOD = Method("full", apply)
