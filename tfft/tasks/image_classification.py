"""Single-label classification of images."""

import numpy as np

from tfft.config import tasks as task_sections
from tfft.evaluation import metrics
from tfft.spec import Task
from tfft.tasks import classification

TOP = 5  # ImageNet reports top-5 accuracy beside top-1


def _compute_metrics(
    logits: np.ndarray, labels: np.ndarray, thresholds: np.ndarray | None = None
) -> dict[str, float]:
    """Compute the headline metrics, with top-5 accuracy where there are more than 5 classes."""
    headline = metrics.headline(logits, labels)
    if logits.shape[1] > TOP:
        headline["top_5_accuracy"] = float(metrics.top_k(logits, labels, TOP).mean())
    return headline


def _bootstrap(
    logits: np.ndarray,
    labels: np.ndarray,
    draws: int,
    seed: int,
    thresholds: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Compute the headline metrics of bootstrap resamples.

    Resampled hits of the top 5 follow a binomial distribution.
    """
    samples = metrics.bootstrap(logits, labels, draws, seed)
    if logits.shape[1] > TOP:
        hits, rows = int(metrics.top_k(logits, labels, TOP).sum()), len(labels)
        resampled_hits = np.random.default_rng([seed, TOP]).binomial(rows, hits / rows, draws)
        samples["top_5_accuracy"] = resampled_hits / rows
    return samples


TASK = Task(
    section=task_sections.ImageClassification,
    head=classification.head,
    loss=classification.loss,
    sample_weights=classification.sample_weights,
    activation="softmax",
    probabilities=metrics.softmax,
    to_logits=classification.to_logits,
    metrics=_compute_metrics,
    bootstrap=_bootstrap,
    details=classification.details,
    decode=classification.decode,
    answer=classification.answer,
    margin=classification.margin,
    summary=classification.SUMMARY,
)
