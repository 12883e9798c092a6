"""Hyperparameter search: KerasTuner's oracles and spaces, tfft's own trials.

    from tfft.tuning import HyperModel, search

Importing it loads no TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import Any

_ROOMS = {"HyperModel": "hypermodel", "search": "search"}
__all__ = ["HyperModel", "search"]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'tfft.search' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tfft.search.{_ROOMS[name]}"), name)
