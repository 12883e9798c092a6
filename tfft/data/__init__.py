"""Read tables and folders into prepared, cached, bucketed batches.

Importing it loads no TensorFlow, which the readers of most formats do without; the first use of
`Dataset` or `Datasets` does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfft.data.dataset_builder import Datasets
    from tfft.data.sources import SOURCES
    from tfft.data.splits import Dataset

__all__ = ["SOURCES", "Dataset", "Datasets"]
_MODULES = {"SOURCES": "sources", "Dataset": "splits", "Datasets": "dataset_builder"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'tfft.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tfft.data.{_MODULES[name]}"), name)
