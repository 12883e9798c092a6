"""Hyperparameter search: KerasTuner's oracles and spaces, tfft's own trials.

    from tfft.search import HyperModel, search

Importing it loads no TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = {"HyperModel": "hypermodel", "search": "pipeline"}
__all__ = ["HyperModel", "search"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'tfft.search' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tfft.search.{_MODULES[name]}"), name)
