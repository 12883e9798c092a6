"""Metrics of predicted numbers, in numpy.

N rows, K numbers in each. A metric of several numbers is the mean over them.
"""

import numpy as np

from tfft.evaluation import metrics

NAMES = ("r2", "pearson", "spearman", "rmse", "mae")


def headline(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Compute the headline metrics of predicted and true numbers, both [N, K]."""
    return {name: float(values.mean()) for name, values in by_column(predicted, true).items()}


def by_column(predicted: np.ndarray, true: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the metrics of each number, [K] each; arguments as for `headline`."""
    ones = np.ones((1, len(true)))
    columns = [_Column(p, t).metrics(ones) for p, t in zip(predicted.T, true.T, strict=True)]
    return {name: np.array([column[name][0] for column in columns]) for name in NAMES}


def bootstrap(
    predicted: np.ndarray, true: np.ndarray, draws: int, seed: int
) -> dict[str, np.ndarray]:
    """Compute the headline metrics of `draws` bootstrap resamples of the rows, each [draws].

    Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    generator = np.random.default_rng(seed)
    rows = len(true)
    columns = [_Column(p, t) for p, t in zip(predicted.T, true.T, strict=True)]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
    for size in metrics.chunks(draws, rows):
        # A resample as how often it draws each row, [size, N].
        weights = generator.multinomial(rows, np.full(rows, 1 / rows), size=size).astype(np.float64)
        samples = [column.metrics(weights) for column in columns]
        for name in NAMES:
            parts[name].append(np.mean([sample[name] for sample in samples], axis=0))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


class _Column:
    """Predicted and true numbers of one column, with what all resamples share."""

    def __init__(self, predicted: np.ndarray, true: np.ndarray):
        true, predicted = true.astype(np.float64), predicted.astype(np.float64)
        error = predicted - true
        # Centred, so that variances do not cancel where the mean is far from 0.
        t, p = true - true.mean(), predicted - predicted.mean()
        self._ranks = _Ranks(true), _Ranks(predicted)
        # Sums over rows, [N, 8].
        parts = (np.ones_like(t), t, p, t * t, p * p, t * p, error * error, np.abs(error))
        self._parts = np.stack(parts, axis=1)

    def metrics(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the metrics of resampled rows by name, each [R].

        Args:
            weights: how often each row is drawn in each of R resamples, [R, N].
        """
        total, t, p, tt, pp, tp, squares, absolute = (weights @ self._parts).T
        variation = tt - t * t / total
        # What rounding leaves of the variation of equal numbers is none.
        floor = 1e-12 * tt.max(initial=0.0)
        is_constant = ~(variation > floor)
        # As in scikit-learn: of equal true numbers R2 is 1 where they are met, else 0.
        r2 = np.where(squares > 0, 0.0, 1.0)
        np.divide(variation - squares, variation, out=r2, where=~is_constant)
        return {
            "r2": np.where(np.isnan(squares), np.nan, r2),
            "pearson": _correlation(variation, pp - p * p / total, tp - t * p / total, (tt, pp)),
            "spearman": self._rank_correlation(weights, total),
            "rmse": np.sqrt(squares / total),
            "mae": absolute / total,
        }

    def _rank_correlation(self, weights: np.ndarray, total: np.ndarray) -> np.ndarray:
        mean = ((total + 1) / 2)[:, None]
        a, b = (ranks(weights) - mean for ranks in self._ranks)
        aa, bb, ab = (np.einsum("rn,rn,rn->r", weights, x, y) for x, y in ((a, a), (b, b), (a, b)))
        return _correlation(aa, bb, ab, (total**3, total**3))


class _Ranks:
    """The ranks of numbers in weighted resamples, from one sort; equal numbers share their mean."""

    def __init__(self, values: np.ndarray):
        self._order = np.argsort(values, kind="stable")
        _, self._group, counts = np.unique(values, return_inverse=True, return_counts=True)
        # Positions in the sorted order at which another number begins.
        self._starts = np.cumsum(counts) - counts

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """Return the rank of each row in each resample, [R, N]; weights are counts, [R, N]."""
        sizes = np.add.reduceat(weights[:, self._order], self._starts, axis=1)
        middle = sizes.cumsum(axis=1) - (sizes - 1) / 2
        return middle[:, self._group]


def _correlation(
    aa: np.ndarray, bb: np.ndarray, ab: np.ndarray, sizes: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Return correlations from sums of squares and products, [R]; 0 where one is constant.

    Args:
        aa: sums of squared deviations, [R].
        bb: likewise.
        ab: sums of products of deviations, [R].
        sizes: what `aa` and `bb` are differences of: rounding leaves about 1e-16 of it.
    """
    varies = (aa > 1e-12 * sizes[0]) & (bb > 1e-12 * sizes[1])
    scale = np.sqrt(np.where(varies, aa * bb, 1.0))
    # NaN stays NaN, so that no metric calls a diverged model good.
    return np.where(varies | np.isnan(ab), ab / scale, 0.0)
