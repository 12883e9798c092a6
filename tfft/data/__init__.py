"""Rows of a table, or pictures -> prepared, cached, bucketed batches."""

from tfft.data import build
from tfft.data.build import Datasets
from tfft.data.sources import SOURCES
from tfft.data.split import Dataset

__all__ = ["SOURCES", "Dataset", "Datasets", "build"]
