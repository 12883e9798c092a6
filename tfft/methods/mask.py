"""The section `mask` alone decides what moves: nothing is added to its rules.

A variable that no rule covers is an error, so that none moves, or is frozen, by oversight.
"""

from typing import Any

from tfft.spec import Method, Phase


def apply(*_: Any) -> tuple[Phase, ...]:
    """No rule of its own."""
    return (Phase(()),)


METHOD = Method("mask", apply)
