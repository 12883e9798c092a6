"""The page that a run leaves behind."""

from tfft.report import svg
from tfft.report.page import write, write_page

__all__ = ["svg", "write", "write_page"]
