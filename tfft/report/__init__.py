"""The page that a run leaves behind."""

from tfft.report import model_card, plots
from tfft.report.images import shown, write_sheet
from tfft.report.page import Shown, write, write_page

__all__ = ["Shown", "card", "shown", "svg", "write", "write_page", "write_sheet"]
