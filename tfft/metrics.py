"""Figures of a classifier from its probabilities, in numpy.

N rows, C classes. Everything that depends on (true, predicted) pairs alone is computed from the
confusion matrix, so that a bootstrap costs one multinomial draw of its cells and no pass over
the rows.
"""

import numpy as np

BINS = 15  # of the calibration error: Guo et al. 2017, "On Calibration of Modern Neural Networks"


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities in float64, [N, C]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def confusion(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Counts [C, C]: true class down, predicted class across."""
    cells = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return cells.reshape(classes, classes)


def from_confusion(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracy, macro and weighted F1, and figures by class, of [..., C, C] counts.

    A class that is neither present nor predicted has F1 0 but is left out of the macro mean, as
    scikit-learn does when it is not given the absent labels.
    """
    matrix = matrix.astype(np.float64)
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    support, predicted = matrix.sum(axis=-1), matrix.sum(axis=-2)
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


def resampled(
    logits: np.ndarray, labels: np.ndarray, draws: int, seed: int
) -> dict[str, np.ndarray]:
    """The headline figures of `draws` bootstrap resamples of the rows, each [draws].

    Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    generator = np.random.default_rng(seed)
    probabilities = softmax(logits)
    rows, classes = probabilities.shape
    matrix = confusion(probabilities.argmax(axis=1), labels, classes)
    cells = generator.multinomial(rows, matrix.ravel() / rows, size=draws)
    counts = from_confusion(cells.reshape(draws, classes, classes))
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
    names = ("accuracy", "macro_f1", "weighted_f1")
    return {**{n: counts[n] for n in names}, "log_loss": loss, "calibration_error": calibration}


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
