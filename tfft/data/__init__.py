"""Rows of a table, or pictures -> prepared, cached, bucketed batches."""

from tfft.data import dataset_builder
from tfft.data.dataset_builder import Datasets
from tfft.data.sources import SOURCES
from tfft.data.splits import Dataset

__all__ = ["SOURCES", "Dataset", "Datasets", "build"]
