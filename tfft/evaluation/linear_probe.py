"""What a backbone's features know of the classes already: a few rows of each and least squares.

Kolesnikov et al. 2020, "Big Transfer", and Dosovitskiy et al. 2021, section 4.1, judge features so:
no training, a closed form, seconds.
"""

from typing import NamedTuple

import keras
import numpy as np

from tfft.data import Dataset, batches

SHOTS, HELD = 10, 10  # rows of each class that the probe learns from and is judged by, at most
ROWS = 4_000  # of both together, at most
RIDGE = 2.0**10  # on the weights, of features with deviation 1, as the authors' code has it


class Probe(NamedTuple):
    """The share of held rows that the probe gets right, and of how many rows it learned."""

    accuracy: float
    chance: float
    learned: int
    held: int


def probe(
    model: keras.Model, rows: batches.Rows, split: Dataset, classes: int, seed: int
) -> Probe | None:
    """Judge the features `pooled` of a backbone by some rows of a split.

    Args:
        model: of `spec.Backbone`.

    Returns None where a row may have several classes, there is no vector for a row, or some class
    has a single row.
    """
    if split.labels.ndim != 1 or "pooled" not in model.output:
        return None
    learned, held = _chosen(split.labels, classes, seed)
    if not len(held):
        return None
    every = np.concatenate([learned, held])
    vector = keras.Model(model.inputs, model.output["pooled"])
    features = np.zeros((len(every), int(vector.output.shape[-1])), np.float32)
    place = {int(row): i for i, row in enumerate(every)}
    lengths = split.lengths[every]
    for batch in batches.in_order(lengths, 32):
        own = batches.Batch(every[batch.positions], batch.width)
        found = vector.predict_on_batch(rows.arrays(own))
        features[[place[int(p)] for p in own.positions]] = found
    cut = len(learned)
    truth = split.labels[held]
    scores = least_squares(features[:cut], split.labels[learned], features[cut:], classes)
    return Probe(
        accuracy=float((scores.argmax(axis=1) == truth).mean()),
        chance=float(np.bincount(truth).max() / len(truth)),
        learned=cut,
        held=len(held),
    )


def least_squares(
    features: np.ndarray, labels: np.ndarray, held: np.ndarray, classes: int
) -> np.ndarray:
    """Scores of held rows, [M, C]: ridge regression of +1 and -1 on standardised features.

    Args:
        features: [N, D]; held: [M, D].
        labels: class ids, [N].
    """
    x, other = features.astype(np.float64), held.astype(np.float64)
    mean, deviation = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-5)
    x, other = (x - mean) / deviation, (other - mean) / deviation
    y = np.where(np.arange(classes) == labels[:, None], 1.0, -1.0)
    # The smaller of the two systems: D x D, or, with fewer rows than features, N x N.
    offset = y.mean(axis=0)
    if len(x) < x.shape[1]:
        dual = np.linalg.solve(x @ x.T + RIDGE * np.eye(len(x)), y - offset)
        return other @ (x.T @ dual) + offset
    weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (y - offset))
    return other @ weights + offset


def _chosen(labels: np.ndarray, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from and others to be judged by, as many of each class as it has."""
    generator = np.random.default_rng(seed)
    share = max(1, ROWS // (2 * max(1, classes)))
    shots, judged = min(SHOTS, share), min(HELD, share)
    learned, held = [], []
    for label in np.unique(labels):
        own = generator.permutation(np.flatnonzero(labels == label))
        first = min(shots, (len(own) + 1) // 2)
        learned.append(own[:first])
        held.append(own[first : first + judged])
    return np.sort(np.concatenate(learned)), np.sort(np.concatenate(held))
