"""`report.html` and `MODEL_CARD.md` of a run."""

from tfft.report import model_card, plots
from tfft.report.images import shown, write_sheet
from tfft.report.page import PageImages, write, write_page

__all__ = ["PageImages", "model_card", "plots", "shown", "write", "write_page", "write_sheet"]
