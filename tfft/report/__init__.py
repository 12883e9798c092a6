"""The page that a run leaves behind."""

from tfft.report import card, svg
from tfft.report.page import Shown, write, write_page
from tfft.report.pictures import shown, write_sheet

__all__ = ["Shown", "card", "shown", "svg", "write", "write_page", "write_sheet"]
