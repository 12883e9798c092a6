"""Trained model -> a SavedModel that takes raw inputs, verified before it is published."""

from tfft.export import serving_config
from tfft.export.exported_model import ExportedModel, find_version, latest, read_description
from tfft.export.saved_model import BOUNDS, PARITY_ROWS, largest_difference, publish
from tfft.export.signatures import Servable
from tfft.export.weight_storage import StoredWeight, rounded_weights

__all__ = [
    "BOUNDS",
    "PARITY_ROWS",
    "ExportedModel",
    "Servable",
    "StoredWeight",
    "find_version",
    "largest_difference",
    "latest",
    "publish",
    "read_description",
    "rounded_weights",
    "serving_config",
]
