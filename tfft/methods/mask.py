"""Mask only: the section `mask` alone decides which variables are trainable.

A variable that no rule covers is an error, so none is trained or frozen by oversight.
"""

from typing import Any

from tfft.spec import Method, Phase


def apply(*_: Any) -> tuple[Phase, ...]:
    """Return one phase without rules."""
    return (Phase(()),)


METHOD = Method("mask", apply)
