"""Every variable moves (Howard & Ruder 2018 call it full fine-tuning)."""

from typing import Any

from tfft.spec import Method, Phase, Rule


def apply(*_: Any) -> tuple[Phase, ...]:
    """One rule for all."""
    return (Phase((Rule("*", trainable=True, origin="method full"),)),)


METHOD = Method("full", apply)
