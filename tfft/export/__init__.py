"""Trained model -> a SavedModel that takes raw inputs, verified before it is published."""

from tfft.export import kit
from tfft.export.compact import Stored, rounded
from tfft.export.saved_model import BOUNDS, PARITY_ROWS, publish
from tfft.export.served import Served, exported_from, latest, read_description
from tfft.export.signatures import Servable

__all__ = [
    "BOUNDS",
    "PARITY_ROWS",
    "Servable",
    "Served",
    "Stored",
    "exported_from",
    "kit",
    "latest",
    "publish",
    "read_description",
    "rounded",
]
