"""Metrics of a classifier from its probabilities, in numpy.

N rows, C classes. Everything that depends only on (true, predicted) pairs is computed from the
confusion matrix, so that a bootstrap draw costs one multinomial sample of its cells instead of a
pass over the rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

# Bins of the calibration error: Guo et al. 2017, "On Calibration of Modern Neural Networks".
BINS = 15


def softmax(logits: np.ndarray) -> np.ndarray:
    """Compute probabilities in float64, [N, C]."""
    # Without the maximum, exp overflows from logits of 710 on.
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Confusion:
    """A sparse confusion matrix of its K non-zero cells; K is at most the number of rows.

    Attributes:
        true, predicted: classes of each cell, int64 [K].
        counts: number of rows in each cell, [..., K].
        classes: number of classes, C.
    """

    true: np.ndarray
    predicted: np.ndarray
    counts: np.ndarray
    classes: int

    def by_true(self) -> np.ndarray:
        """Return the number of rows of each class, [..., C]."""
        return _sums(self.counts, self.true, self.classes)

    def by_predicted(self) -> np.ndarray:
        """Return the number of predictions of each class, [..., C]."""
        return _sums(self.counts, self.predicted, self.classes)

    def hits(self) -> np.ndarray:
        """Return the number of correctly predicted rows of each class, [..., C]."""
        correct = self.true == self.predicted
        hits = np.zeros((*self.counts.shape[:-1], self.classes))
        hits[..., self.true[correct]] = self.counts[..., correct]
        return hits

    def matrix(self, classes: np.ndarray) -> np.ndarray:
        """Return the counts between `classes`, int64 [c, c]: true down, predicted across."""
        index_of = np.full(self.classes, -1)
        index_of[classes] = np.arange(len(classes))
        true, predicted = index_of[self.true], index_of[self.predicted]
        selected = (true >= 0) & (predicted >= 0)
        matrix = np.zeros((len(classes), len(classes)), np.int64)
        matrix[true[selected], predicted[selected]] = self.counts[selected]
        return matrix


def confusion(predicted: np.ndarray, labels: np.ndarray, classes: int) -> Confusion:
    """Return the confusion matrix of predicted and true classes, both [N]."""
    # int64: from 46,341 classes on, the cell number overflows int32.
    cells, counts = np.unique(labels.astype(np.int64) * classes + predicted, return_counts=True)
    return Confusion(cells // classes, cells % classes, counts, classes)


def _sums(counts: np.ndarray, keys: np.ndarray, classes: int) -> np.ndarray:
    """Return the sums of `counts` [..., K] over equal `keys` [K], float64 [..., classes]."""
    # `reduceat` over sorted keys: `np.bincount` has no leading axes.
    order = np.argsort(keys, kind="stable")
    present, starts = np.unique(keys[order], return_index=True)
    sums = np.zeros((*counts.shape[:-1], classes))
    sums[..., present] = np.add.reduceat(counts[..., order], starts, axis=-1)
    return sums


def from_confusion(confusion: Confusion) -> dict[str, np.ndarray]:
    """Compute accuracy, macro and weighted F1 [...], and metrics by class [..., C].

    A class that is neither present nor predicted has F1 0 and is left out of the macro mean, as
    scikit-learn does when absent labels are not listed.
    """
    hits, support, predicted = confusion.hits(), confusion.by_true(), confusion.by_predicted()
    # Also in a resample: the macro mean of a draw is over the classes that it holds.
    occurring = (support + predicted) > 0
    f1 = ratio(2 * hits, support + predicted)
    total = support.sum(axis=-1)
    return {
        "accuracy": ratio(hits.sum(axis=-1), total),
        "macro_f1": ratio(f1.sum(axis=-1), occurring.sum(axis=-1)),
        "weighted_f1": ratio((f1 * support).sum(axis=-1), total),
        "precision": ratio(hits, predicted),
        "recall": ratio(hits, support),
        "f1": f1,
        "support": support,
    }


def log_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute the negative log-likelihood of each row's true class, [N]."""
    true_class_probabilities = probabilities[np.arange(len(labels)), labels]
    # The smallest normal float64 in place of 0: a loss of 708, not infinity.
    return -np.log(np.maximum(true_class_probabilities, np.finfo(np.float64).tiny))


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Compute count, mean confidence and accuracy in `BINS` equal bins of the top probability."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    # Bins are open below and closed above, as in Guo et al.
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    return {
        "count": count,
        "confidence": ratio(np.bincount(bins, confidence, minlength=BINS), count),
        "accuracy": ratio(np.bincount(bins, correct, minlength=BINS), count),
    }


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Compute the expected calibration error.

    The mean of |confidence - accuracy| over the bins, weighted by their rows.
    """
    bins = reliability(probabilities, labels)
    gaps = np.abs(bins["confidence"] - bins["accuracy"])
    return float((gaps * bins["count"]).sum() / max(1, len(labels)))


def headline(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Compute the headline metrics of logits [N, C] and class ids [N]."""
    probabilities = softmax(logits)
    counts = from_confusion(confusion(probabilities.argmax(axis=1), labels, logits.shape[1]))
    return {
        "accuracy": float(counts["accuracy"]),
        "macro_f1": float(counts["macro_f1"]),
        "weighted_f1": float(counts["weighted_f1"]),
        "log_loss": float(log_losses(probabilities, labels).mean()),
        "calibration_error": calibration_error(probabilities, labels),
    }


def bootstrap(
    logits: np.ndarray, labels: np.ndarray, draws: int, seed: int
) -> dict[str, np.ndarray]:
    """Compute the headline metrics of `draws` bootstrap resamples of the rows, each [draws].

    Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    generator = np.random.default_rng(seed)
    probabilities = softmax(logits)
    # 1. What depends on the confusion matrix: a multinomial sample of its cells.
    rows, classes = probabilities.shape
    count_metrics = _resampled_counts(
        confusion(probabilities.argmax(axis=1), labels, classes), draws, generator
    )
    # 2. What needs the rows: loss and calibration. The gaps of a bin are summed before the absolute
    # value, since |sum of (confidence - correct)| / rows is the bin's share of the error.
    losses = log_losses(probabilities, labels)
    confidence = probabilities.max(axis=1)
    gaps = confidence - (probabilities.argmax(axis=1) == labels)
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    loss, calibration = np.empty(draws), np.empty(draws)
    for draw in range(draws):
        positions = generator.integers(0, rows, rows)
        loss[draw] = losses[positions].mean()
        bin_gaps = np.bincount(bins[positions], gaps[positions], minlength=BINS)
        calibration[draw] = np.abs(bin_gaps).sum() / rows
    return {**count_metrics, "log_loss": loss, "calibration_error": calibration}


def _resampled_counts(
    matrix: Confusion, draws: int, generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return the metrics of resampled confusion cells, each [draws]."""
    rows, cells = matrix.counts.sum(), len(matrix.counts)
    names = ("accuracy", "macro_f1", "weighted_f1")
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for size in chunks(draws, max(cells, matrix.classes)):
        counts = generator.multinomial(rows, matrix.counts / rows, size=size)
        values = from_confusion(replace(matrix, counts=counts))
        for name in names:
            parts[name].append(values[name])
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def chunks(draws: int, width: int) -> Iterator[int]:
    """Yield sizes that sum to `draws`, so that arrays [size, width] stay below 8 MiB of float64."""
    largest = max(1, 2**20 // width)  # 2**20 float64 values are 8 MiB
    for start in range(0, draws, largest):
        yield min(largest, draws - start)


def top_k(logits: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Return whether the true class is among the k with the largest logits, bool [N]."""
    # The k best in any order; a full sort of thousands of classes is not needed.
    best = np.argpartition(-logits, k - 1, axis=1)[:, :k]
    return (best == labels[:, None]).any(axis=1)


def interval(samples: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the central percentile interval of bootstrap samples."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return float(low), float(high)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole, and 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros_like(part, dtype=np.float64), where=whole != 0)
