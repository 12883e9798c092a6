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
        # Centred, so that variances do not cancel where the mean is far from 0.
        center = true.mean(dtype=np.float64)
        self._predicted = predicted.astype(np.float64) - center
        self._true = true.astype(np.float64) - center
        self._ranks = _Ranks(predicted), _Ranks(true)

    def metrics(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the metrics of weighted rows by name, each [R].

        Args:
            weights: weights of the rows in each of R resamples, [R, N].
        """
        error = self._predicted - self._true
        total = weights.sum(axis=1)
        squares = weights @ np.square(error)
        mean = weights @ self._true / total
        variation = (weights * np.square(self._true - mean[:, None])).sum(axis=1)
        ranks = [ranks(weights) for ranks in self._ranks]
        # As in scikit-learn: of equal true numbers R2 is 1 where they are met, else 0.
        r2 = np.where(squares > 0, 0.0, 1.0)
        np.divide(variation - squares, variation, out=r2, where=variation > 0)
        return {
            "r2": r2,
            "pearson": _correlation(self._predicted, self._true, weights),
            "spearman": _correlation(*ranks, weights),
            "rmse": np.sqrt(squares / total),
            "mae": weights @ np.abs(error) / total,
        }


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


def _correlation(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of weighted rows, [R]; 0 where one of them is constant.

    Args:
        a: [N] or [R, N].
        b: likewise.
        weights: [R, N].
    """
    total = weights.sum(axis=1, keepdims=True)
    a, b = np.broadcast_to(a, weights.shape), np.broadcast_to(b, weights.shape)
    a = a - (weights * a).sum(axis=1, keepdims=True) / total
    b = b - (weights * b).sum(axis=1, keepdims=True) / total
    covariance = (weights * a * b).sum(axis=1)
    scale = np.sqrt((weights * a * a).sum(axis=1) * (weights * b * b).sum(axis=1))
    # Rounding leaves a constant with a variance of about 1e-32 of its square.
    return np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 1e-24)
