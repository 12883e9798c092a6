"""Single-label classification of images."""

import numpy as np

from tfft.config import tasks as task_sections
from tfft.evaluation import metrics
from tfft.spec import Fitted
from tfft.tasks.classification import OneClass

TOP = 5  # ImageNet reports top-5 accuracy beside top-1


class ImageClassification(OneClass):
    """An image has one class; with more than 5 classes, `top_5_accuracy` is a metric."""

    section = task_sections.ImageClassification
    features = "tiny"
    pipeline = "image-classification"

    def metrics(self, logits: np.ndarray, targets: np.ndarray, fitted: Fitted) -> dict[str, float]:
        """Compute the headline metrics."""
        headline = super().metrics(logits, targets, fitted)
        if logits.shape[1] > TOP:
            headline["top_5_accuracy"] = float(metrics.top_k(logits, targets, TOP).mean())
        return headline

    def bootstrap(
        self, logits: np.ndarray, targets: np.ndarray, draws: int, seed: int, fitted: Fitted
    ) -> dict[str, np.ndarray]:
        """Compute the headline metrics of bootstrap resamples, each [draws].

        Resampled hits of the top 5 follow a binomial distribution.
        """
        samples = super().bootstrap(logits, targets, draws, seed, fitted)
        if logits.shape[1] > TOP:
            hits, rows = int(metrics.top_k(logits, targets, TOP).sum()), len(targets)
            resampled_hits = np.random.default_rng([seed, TOP]).binomial(rows, hits / rows, draws)
            samples["top_5_accuracy"] = resampled_hits / rows
        return samples


TASK = ImageClassification()
