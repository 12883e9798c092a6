"""The page that a run leaves behind."""

from tfft.report.page import write

__all__ = ["write"]
