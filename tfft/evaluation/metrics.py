"""Figures of a classifier from its probabilities, in numpy.

N rows, C classes. Everything that depends on (true, predicted) pairs alone is computed from the
confusion matrix, so that a bootstrap costs one multinomial draw of its cells and no pass over
the rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

BINS = 15  # of the calibration error: Guo et al. 2017, "On Calibration of Modern Neural Networks"


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities in float64, [N, C]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix by its K cells that are not zero, which are no more than there are rows.

    Attributes:
        true, predicted: the classes of each cell, int64 [K].
        counts: the rows in each cell, [..., K].
        classes: the number of classes, C.
    """

    true: np.ndarray
    predicted: np.ndarray
    counts: np.ndarray
    classes: int

    def by_true(self) -> np.ndarray:
        """Return the rows of each class, [..., C]."""
        return _sums(self.counts, self.true, self.classes)

    def by_predicted(self) -> np.ndarray:
        """Return how often each class is predicted, [..., C]."""
        return _sums(self.counts, self.predicted, self.classes)

    def hits(self) -> np.ndarray:
        """Return the rows of each class that are predicted as it, [..., C]."""
        right = self.true == self.predicted
        hits = np.zeros((*self.counts.shape[:-1], self.classes))
        hits[..., self.true[right]] = self.counts[..., right]
        return hits

    def matrix(self, chosen: np.ndarray) -> np.ndarray:
        """Return the counts between `chosen` classes, int64 [c, c]: true down, predicted across."""
        place = np.full(self.classes, -1)
        place[chosen] = np.arange(len(chosen))
        true, predicted = place[self.true], place[self.predicted]
        shown = (true >= 0) & (predicted >= 0)
        matrix = np.zeros((len(chosen), len(chosen)), np.int64)
        matrix[true[shown], predicted[shown]] = self.counts[shown]
        return matrix


def confusion(predicted: np.ndarray, labels: np.ndarray, classes: int) -> Confusion:
    """Return the confusion matrix of predicted and true classes, both [N]."""
    # 47,000 classes have more cells than int32 has numbers.
    cells, counts = np.unique(labels.astype(np.int64) * classes + predicted, return_counts=True)
    return Confusion(cells // classes, cells % classes, counts, classes)


def _sums(counts: np.ndarray, keys: np.ndarray, classes: int) -> np.ndarray:
    """Return the sums of `counts` [..., K] over equal `keys` [K], float64 [..., classes]."""
    order = np.argsort(keys, kind="stable")
    present, starts = np.unique(keys[order], return_index=True)
    sums = np.zeros((*counts.shape[:-1], classes))
    sums[..., present] = np.add.reduceat(counts[..., order], starts, axis=-1)
    return sums


def from_confusion(confusion: Confusion) -> dict[str, np.ndarray]:
    """Return accuracy, macro and weighted F1 [...], and metrics by class [..., C].

    A class that is neither present nor predicted has F1 0 but is left out of the macro mean, as
    scikit-learn does when it is not given the absent labels.
    """
    hits, support, predicted = confusion.hits(), confusion.by_true(), confusion.by_predicted()
    seen = (support + predicted) > 0
    f1 = ratio(2 * hits, support + predicted)
    total = support.sum(axis=-1)
    return {
        "accuracy": ratio(hits.sum(axis=-1), total),
        "macro_f1": ratio(f1.sum(axis=-1), seen.sum(axis=-1)),
        "weighted_f1": ratio((f1 * support).sum(axis=-1), total),
        "precision": ratio(hits, predicted),
        "recall": ratio(hits, support),
        "f1": f1,
        "support": support,
    }


def log_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Negative log-likelihood of each row's true class, [N]."""
    chosen = probabilities[np.arange(len(labels)), labels]
    return -np.log(np.maximum(chosen, np.finfo(np.float64).tiny))


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Rows, mean confidence and accuracy in `BINS` equal bins of the top probability."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    return {
        "count": count,
        "confidence": ratio(np.bincount(bins, confidence, minlength=BINS), count),
        "accuracy": ratio(np.bincount(bins, correct, minlength=BINS), count),
    }


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error: mean |confidence - accuracy| over bins, weighted by rows."""
    bins = reliability(probabilities, labels)
    gaps = np.abs(bins["confidence"] - bins["accuracy"])
    return float((gaps * bins["count"]).sum() / max(1, len(labels)))


def headline(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The figures that a run reports first."""
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
    """The headline figures of `draws` bootstrap resamples of the rows, each [draws].

    Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    generator = np.random.default_rng(seed)
    probabilities = softmax(logits)
    rows, classes = probabilities.shape
    counted = _resampled_counts(
        confusion(probabilities.argmax(axis=1), labels, classes), draws, generator
    )
    losses = log_losses(probabilities, labels)
    confidence = probabilities.max(axis=1)
    gaps = confidence - (probabilities.argmax(axis=1) == labels)
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    loss, calibration = np.empty(draws), np.empty(draws)
    for draw in range(draws):
        chosen = generator.integers(0, rows, rows)
        loss[draw] = losses[chosen].mean()
        in_bins = np.bincount(bins[chosen], gaps[chosen], minlength=BINS)
        calibration[draw] = np.abs(in_bins).sum() / rows
    return {**counted, "log_loss": loss, "calibration_error": calibration}


def _resampled_counts(
    matrix: Confusion, draws: int, generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return the metrics of resampled cells, each [draws]."""
    rows, cells = matrix.counts.sum(), len(matrix.counts)
    names = ("accuracy", "macro_f1", "weighted_f1")
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for size in chunks(draws, max(cells, matrix.classes)):
        drawn = generator.multinomial(rows, matrix.counts / rows, size=size)
        values = from_confusion(replace(matrix, counts=drawn))
        for name in names:
            found[name].append(values[name])
    return {name: np.concatenate(parts) for name, parts in found.items()}


def chunks(draws: int, width: int) -> Iterator[int]:
    """Yield sizes that sum to `draws`, so that arrays [size, width] stay below 8 MiB of float64."""
    largest = max(1, 2**20 // width)
    for start in range(0, draws, largest):
        yield min(largest, draws - start)


def top_k(logits: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Whether the true class is among the k with the largest logits, bool [N]."""
    best = np.argpartition(-logits, k - 1, axis=1)[:, :k]
    return (best == labels[:, None]).any(axis=1)


def interval(samples: np.ndarray, confidence: float) -> tuple[float, float]:
    """The central percentile interval of bootstrap samples."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return float(low), float(high)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, and 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros_like(part, dtype=np.float64), where=whole != 0)
