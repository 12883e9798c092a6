"""Metrics of a classifier with any number of labels per row, from its probabilities, in numpy.

N rows, C labels; truth is 0 or 1, [N, C].
"""

from collections.abc import Mapping

import numpy as np

from tfft.evaluation import metrics

DEFAULT_THRESHOLD = 0.5  # default threshold of a label


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Compute probabilities in float64, [N, C]."""
    x = logits.astype(np.float64)
    # exp(-log(1 + exp(-x))): no overflow for large negative x.
    return np.exp(-np.logaddexp(0.0, -x))


def log_losses(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Compute the binary cross-entropy of each row, averaged over its labels, [N]."""
    min_probability = np.finfo(np.float64).tiny
    log_true, log_false = (
        np.log(np.maximum(probabilities, min_probability)),
        np.log(np.maximum(1 - probabilities, min_probability)),
    )
    return -np.where(truth > 0, log_true, log_false).mean(axis=1)


def by_label(
    predicted: np.ndarray, truth: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Count hits, predictions and true rows of each label, each [..., C].

    Args:
        predicted: predicted labels, bool [N, C].
        truth: [N, C].
        weights: weight of each row, [..., N].
    """
    return {
        name: weights @ indicators for name, indicators in _indicators(predicted, truth).items()
    }


def _indicators(predicted: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Return the indicators that `by_label` sums, each float64 [N, C]."""
    predicted_float, true = predicted.astype(np.float64), truth.astype(np.float64)
    return {"hits": predicted_float * true, "chosen": predicted_float, "true": true}


def from_counts(counts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compute precision, recall and F1: by label [..., C], micro-averaged, and the macro F1.

    0 / 0 counts as 0, like scikit-learn's `zero_division=0`.
    """
    hits, predicted, true = counts["hits"], counts["chosen"], counts["true"]
    all_hits, all_predicted, all_true = (x.sum(axis=-1) for x in (hits, predicted, true))
    f1 = metrics.ratio(2 * hits, predicted + true)
    return {
        "precision": metrics.ratio(hits, predicted),
        "recall": metrics.ratio(hits, true),
        "f1": f1,
        "micro_f1": metrics.ratio(2 * all_hits, all_predicted + all_true),
        "macro_f1": f1.mean(axis=-1),
        "micro_precision": metrics.ratio(all_hits, all_predicted),
        "micro_recall": metrics.ratio(all_hits, all_true),
    }


class Ranking:
    """Each label's rows sorted by falling probability, so that resamples need no sort."""

    def __init__(self, probabilities: np.ndarray, truth: np.ndarray):
        self._order = np.argsort(-probabilities, axis=0, kind="stable")  # [N, C]
        ranked = np.take_along_axis(probabilities, self._order, axis=0)
        self._truth = np.take_along_axis(truth, self._order, axis=0).astype(np.float64)
        # A threshold cannot separate equal probabilities: precision counts at the last of them.
        is_last_of_ties = np.vstack([ranked[1:] < ranked[:-1], np.ones((1, ranked.shape[1]), bool)])
        # For each position the next one at which a run of equal probabilities ends, [N, C].
        positions = np.arange(len(ranked))[:, None]
        self._ends = np.minimum.accumulate(
            np.where(is_last_of_ties, positions, len(ranked))[::-1], axis=0
        )[::-1]

    def average_precision(self, weights: np.ndarray) -> np.ndarray:
        """Compute the average precision of each label, [C]; 0 for a label without rows.

        Equals scikit-learn's `average_precision_score` with `sample_weight`: the sum of (R_n -
        R_n-1) P_n.

        Args:
            weights: weight of each row, [N].
        """
        ranked_weights = weights[self._order]
        hits, total = (ranked_weights * self._truth).cumsum(axis=0), ranked_weights.cumsum(axis=0)
        precision = metrics.ratio(hits, total)
        at_end = np.take_along_axis(precision, self._ends, axis=0)
        # R_n - R_n-1 is the weight of row n among the true rows.
        return metrics.ratio((ranked_weights * self._truth * at_end).sum(axis=0), hits[-1])


def thresholds(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the threshold of each label with the highest F1 on these rows, [C].

    A threshold is the midpoint between two probabilities (Lipton, Elkan & Narayanaswamy 2014,
    "Optimal Thresholding of Classifiers to Maximize F1 Measure"). A label that no row has, or all
    rows have, gets 0.5.
    """
    limits = np.full(truth.shape[1], DEFAULT_THRESHOLD)
    for label in range(truth.shape[1]):
        order = np.argsort(-probabilities[:, label], kind="stable")
        ranked, is_true = probabilities[order, label], truth[order, label] > 0
        if not is_true.any() or is_true.all():
            continue
        # F1 of predicting the first k rows, for each k: 2 hits / (predicted + true).
        f1 = 2 * is_true.cumsum() / (np.arange(1, len(is_true) + 1) + is_true.sum())
        # No threshold lies between equal probabilities.
        f1[:-1][ranked[1:] == ranked[:-1]] = -1.0
        best = int(f1.argmax())
        next_probability = ranked[best + 1] if best + 1 < len(ranked) else 0.0
        limits[label] = (ranked[best] + next_probability) / 2
    return limits


def reliability(probabilities: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Compute count, mean probability and share of true labels in bins of the probability."""
    flat_probabilities, is_true = probabilities.ravel(), (truth > 0).ravel()
    bins = np.clip(np.ceil(flat_probabilities * metrics.BINS).astype(int) - 1, 0, metrics.BINS - 1)
    count = np.bincount(bins, minlength=metrics.BINS)
    return {
        "count": count,
        "confidence": metrics.ratio(
            np.bincount(bins, flat_probabilities, minlength=metrics.BINS), count
        ),
        "accuracy": metrics.ratio(np.bincount(bins, is_true, minlength=metrics.BINS), count),
    }


def calibration_error(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Compute the mean of |probability - share of true labels| over the bins, weighted by count."""
    bins = reliability(probabilities, truth)
    gaps = np.abs(bins["confidence"] - bins["accuracy"])
    return float((gaps * bins["count"]).sum() / max(1, truth.size))


def headline(
    probabilities: np.ndarray, truth: np.ndarray, predicted: np.ndarray
) -> dict[str, float]:
    """Compute the headline metrics.

    The mean average precision is over the labels that some row has.
    """
    # Every row once; the bootstrap passes other weights.
    ones = np.ones(len(truth))
    counts = from_counts(by_label(predicted, truth, ones))
    precision = Ranking(probabilities, truth).average_precision(ones)
    has_rows = truth.any(axis=0)
    return {
        "mean_average_precision": float(precision[has_rows].mean()) if has_rows.any() else 0.0,
        **{name: float(counts[name]) for name in _NAMES},
        "exact_match": float((predicted == (truth > 0)).all(axis=1).mean()),
        "log_loss": float(log_losses(probabilities, truth).mean()),
        "calibration_error": calibration_error(probabilities, truth),
    }


_NAMES = ("micro_f1", "macro_f1", "micro_precision", "micro_recall")


def bootstrap(
    probabilities: np.ndarray, truth: np.ndarray, predicted: np.ndarray, draws: int, seed: int
) -> dict[str, np.ndarray]:
    """Compute the headline metrics, without the calibration error, of `draws` bootstrap resamples.

    Returns:
        Name of a metric -> its values, each [draws].
    """
    generator = np.random.default_rng(seed)
    rows = len(truth)
    ranking, exact = Ranking(probabilities, truth), (predicted == (truth > 0)).all(axis=1)
    losses = log_losses(probabilities, truth)
    indicators = _indicators(predicted, truth)
    parts: list[dict[str, np.ndarray]] = []
    for size in metrics.chunks(draws, max(truth.shape)):
        # A resample as how often it draws each row, [size, N]: sums become matrix products.
        weights = generator.multinomial(rows, np.full(rows, 1 / rows), size=size).astype(np.float64)
        sums = {name: weights @ array for name, array in indicators.items()}
        counts = from_counts(sums)
        mean_precision = np.empty(size)
        # Average precision is no sum over rows, so each resample is computed by itself.
        for draw in range(size):
            has_rows = sums["true"][draw] > 0
            precision = ranking.average_precision(weights[draw])
            mean_precision[draw] = precision[has_rows].mean() if has_rows.any() else 0.0
        parts.append(
            {
                "mean_average_precision": mean_precision,
                **{name: counts[name] for name in _NAMES},
                "exact_match": weights @ exact / rows,
                "log_loss": weights @ losses / rows,
            }
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
