"""Read tables and folders into prepared, cached, bucketed batches."""

from tfft.data import dataset_builder
from tfft.data.dataset_builder import Datasets
from tfft.data.sources import SOURCES
from tfft.data.splits import Dataset

__all__ = ["SOURCES", "Dataset", "Datasets", "dataset_builder"]
