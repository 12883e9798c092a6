"""Rows of a table -> prepared, cached, bucketed batches of token ids."""

from tfft.data import build
from tfft.data.build import Datasets
from tfft.data.prepare import Prepared
from tfft.data.sources import SOURCES
from tfft.data.split import Dataset

__all__ = ["SOURCES", "Dataset", "Datasets", "Prepared", "build"]
