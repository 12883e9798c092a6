"""`report.html` and `MODEL_CARD.md` of a run."""

from tfft.report import model_card, plots
from tfft.report.images import build_page_images, write_augmentation_preview
from tfft.report.page import PageImages, write, write_page

__all__ = [
    "PageImages",
    "build_page_images",
    "model_card",
    "plots",
    "write",
    "write_augmentation_preview",
    "write_page",
]
