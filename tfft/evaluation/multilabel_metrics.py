"""Figures of a tagger, whose rows have any number of labels, from its probabilities, in numpy.

N rows, C tags; truth is 0 or 1, [N, C].
"""

from collections.abc import Mapping

import numpy as np

from tfft.evaluation import metrics

HALF = 0.5  # the threshold of a tag for which there is no better


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities in float64, [N, C]."""
    x = logits.astype(np.float64)
    return np.exp(-np.logaddexp(0.0, -x))


def log_losses(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Binary cross-entropy of each row, the mean over its tags, [N]."""
    least = np.finfo(np.float64).tiny
    yes, no = np.log(np.maximum(probabilities, least)), np.log(np.maximum(1 - probabilities, least))
    return -np.where(truth > 0, yes, no).mean(axis=1)


def by_tag(chosen: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Hits, how often chosen and how often true, each [..., C].

    Args:
        chosen: bool [N, C].
        weights: how often each row counts, [..., N].
    """
    return {name: weights @ counted for name, counted in _counted(chosen, truth).items()}


def _counted(chosen: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    yes, real = chosen.astype(np.float64), truth.astype(np.float64)
    return {"hits": yes * real, "chosen": yes, "true": real}


def from_counts(counts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Precision, recall and F1: by tag, [..., C], of all tags together and the tags' mean F1.

    What would be 0 / 0 is 0, as scikit-learn's `zero_division=0`.
    """
    hits, chosen, true = counts["hits"], counts["chosen"], counts["true"]
    all_hits, all_chosen, all_true = (x.sum(axis=-1) for x in (hits, chosen, true))
    f1 = metrics.ratio(2 * hits, chosen + true)
    return {
        "precision": metrics.ratio(hits, chosen),
        "recall": metrics.ratio(hits, true),
        "f1": f1,
        "micro_f1": metrics.ratio(2 * all_hits, all_chosen + all_true),
        "macro_f1": f1.mean(axis=-1),
        "micro_precision": metrics.ratio(all_hits, all_chosen),
        "micro_recall": metrics.ratio(all_hits, all_true),
    }


class Ranking:
    """Each tag's rows from the most probable down, so that a resample sorts nothing again."""

    def __init__(self, probabilities: np.ndarray, truth: np.ndarray):
        self._order = np.argsort(-probabilities, axis=0, kind="stable")  # [N, C]
        ranked = np.take_along_axis(probabilities, self._order, axis=0)
        self._truth = np.take_along_axis(truth, self._order, axis=0).astype(np.float64)
        # Equal probabilities fall together: only at the last of them a threshold can stand.
        below = np.vstack([ranked[1:] < ranked[:-1], np.ones((1, ranked.shape[1]), bool)])
        places = np.arange(len(ranked))[:, None]
        self._ends = np.minimum.accumulate(np.where(below, places, len(ranked))[::-1], axis=0)[::-1]

    def average_precision(self, weights: np.ndarray) -> np.ndarray:
        """The area below each tag's precision over recall, as steps: [C]; 0 for a tag without rows.

        scikit-learn's `average_precision_score` with `sample_weight`: the sum of (R_n - R_n-1) P_n.
        """
        own = weights[self._order]
        hits, seen = (own * self._truth).cumsum(axis=0), own.cumsum(axis=0)
        precision = metrics.ratio(hits, seen)
        at_end = np.take_along_axis(precision, self._ends, axis=0)
        return metrics.ratio((own * self._truth * at_end).sum(axis=0), hits[-1])


def thresholds(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The threshold of each tag whose F1 is highest on these rows, [C].

    It stands in the middle between two probabilities (Lipton, Elkan & Narayanaswamy 2014,
    "Optimal Thresholding of Classifiers to Maximize F1 Measure"). A tag without rows, or that all
    rows have, gets 0.5.
    """
    found = np.full(truth.shape[1], HALF)
    for tag in range(truth.shape[1]):
        order = np.argsort(-probabilities[:, tag], kind="stable")
        ranked, real = probabilities[order, tag], truth[order, tag] > 0
        if not real.any() or real.all():
            continue
        f1 = 2 * real.cumsum() / (np.arange(1, len(real) + 1) + real.sum())
        f1[:-1][ranked[1:] == ranked[:-1]] = -1.0
        best = int(f1.argmax())
        lower = ranked[best + 1] if best + 1 < len(ranked) else 0.0
        found[tag] = (ranked[best] + lower) / 2
    return found


def reliability(probabilities: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Pairs of row and tag, mean probability and share that is true, in bins of the probability."""
    flat, real = probabilities.ravel(), (truth > 0).ravel()
    bins = np.clip(np.ceil(flat * metrics.BINS).astype(int) - 1, 0, metrics.BINS - 1)
    count = np.bincount(bins, minlength=metrics.BINS)
    return {
        "count": count,
        "confidence": metrics.ratio(np.bincount(bins, flat, minlength=metrics.BINS), count),
        "accuracy": metrics.ratio(np.bincount(bins, real, minlength=metrics.BINS), count),
    }


def calibration_error(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Mean |probability - share that is true| over the bins, weighted by what is in them."""
    bins = reliability(probabilities, truth)
    gaps = np.abs(bins["confidence"] - bins["accuracy"])
    return float((gaps * bins["count"]).sum() / max(1, truth.size))


def headline(probabilities: np.ndarray, truth: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
    """The figures that a run reports first. The mean average precision is over tags that some row
    has."""
    ones = np.ones(len(truth))
    counts = from_counts(by_tag(chosen, truth, ones))
    precision = Ranking(probabilities, truth).average_precision(ones)
    given = truth.any(axis=0)
    return {
        "mean_average_precision": float(precision[given].mean()) if given.any() else 0.0,
        **{name: float(counts[name]) for name in _NAMES},
        "exact_match": float((chosen == (truth > 0)).all(axis=1).mean()),
        "log_loss": float(log_losses(probabilities, truth).mean()),
        "calibration_error": calibration_error(probabilities, truth),
    }


_NAMES = ("micro_f1", "macro_f1", "micro_precision", "micro_recall")


def bootstrap(
    probabilities: np.ndarray, truth: np.ndarray, chosen: np.ndarray, draws: int, seed: int
) -> dict[str, np.ndarray]:
    """The headline figures, but the calibration error, of `draws` bootstrap resamples of the rows,
    each [draws]."""
    generator = np.random.default_rng(seed)
    rows = len(truth)
    ranking, exact = Ranking(probabilities, truth), (chosen == (truth > 0)).all(axis=1)
    losses = log_losses(probabilities, truth)
    counted = _counted(chosen, truth)
    parts: list[dict[str, np.ndarray]] = []
    for size in metrics.chunks(draws, max(truth.shape)):
        weights = generator.multinomial(rows, np.full(rows, 1 / rows), size=size).astype(np.float64)
        sums = {name: weights @ array for name, array in counted.items()}
        counts = from_counts(sums)
        mean = np.empty(size)
        for draw in range(size):
            given = sums["true"][draw] > 0
            precision = ranking.average_precision(weights[draw])
            mean[draw] = precision[given].mean() if given.any() else 0.0
        parts.append(
            {
                "mean_average_precision": mean,
                **{name: counts[name] for name in _NAMES},
                "exact_match": weights @ exact / rows,
                "log_loss": weights @ losses / rows,
            }
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
