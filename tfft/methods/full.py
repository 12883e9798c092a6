"""Full fine-tuning: every variable is trainable (Howard & Ruder 2018)."""

from typing import Any

from tfft.spec import Method, Phase, Rule


def apply(*_: Any) -> tuple[Phase, ...]:
    """Return one phase that trains every variable."""
    return (Phase((Rule("*", trainable=True, origin="method full"),)),)


METHOD = Method("full", apply)
