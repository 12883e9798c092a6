"""One class for each picture."""

import numpy as np

from tfft.evaluation import metrics
from tfft.spec import Task
from tfft.tasks import classification

TOP = 5  # of the accuracy that ImageNet's authors report beside the first


def _figures(
    logits: np.ndarray, labels: np.ndarray, thresholds: np.ndarray | None = None
) -> dict[str, float]:
    figures = metrics.headline(logits, labels)
    if logits.shape[1] > TOP:
        figures["top_5_accuracy"] = float(metrics.top_k(logits, labels, TOP).mean())
    return figures


def _resampled(
    logits: np.ndarray,
    labels: np.ndarray,
    draws: int,
    seed: int,
    thresholds: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    samples = metrics.bootstrap(logits, labels, draws, seed)
    if logits.shape[1] > TOP:
        hits, rows = int(metrics.top_k(logits, labels, TOP).sum()), len(labels)
        drawn = np.random.default_rng([seed, TOP]).binomial(rows, hits / rows, draws)
        samples["top_5_accuracy"] = drawn / rows
    return samples


TASK = Task(
    name="image_classification",
    modality="image",
    columns=("image",),
    head=classification.head,
    loss=classification.loss,
    sample_weights=classification.sample_weights,
    probabilities=metrics.softmax,
    to_logits=classification.to_logits,
    metrics=_figures,
    bootstrap=_resampled,
    details=classification.details,
    decode=classification.decode,
)
