"""Trained model -> a SavedModel that takes raw inputs, verified before it is published."""

from tfft.export.saved_model import BOUNDS, PARITY_ROWS, publish
from tfft.export.served import Served, latest

__all__ = ["BOUNDS", "PARITY_ROWS", "Served", "latest", "publish"]
