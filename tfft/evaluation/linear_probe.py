"""A linear probe: how well a least-squares classifier on the frozen features separates the classes.

Kolesnikov et al. 2020, "Big Transfer", and Dosovitskiy et al. 2021, section 4.1, evaluate features
this way: in closed form, without training, in seconds.
"""

from typing import NamedTuple

import keras
import numpy as np

from tfft.data import Dataset, batches

# Few rows: the probe decides `method: auto` before the training, in seconds.
NUM_FITTED, NUM_HELD_OUT = 10, 10  # rows per class to fit and to hold out, at most
MAX_ROWS = 4_000  # rows to fit and to hold out in total, at most
RIDGE = 2.0**10  # penalty on the weights of standardised features, from the authors' code


class Probe(NamedTuple):
    """The result of a linear probe.

    Attributes:
        accuracy: accuracy on the held-out rows.
        chance: share of the most frequent class among the held-out rows.
        num_fitted: number of rows that the probe was fitted to.
        num_held_out: number of held-out rows.
    """

    accuracy: float
    chance: float
    num_fitted: int
    num_held_out: int


def probe(
    model: keras.Model, rows: batches.Rows, split: Dataset, classes: int, seed: int
) -> Probe | None:
    """Probe the features `pooled` of a backbone on some rows of a split.

    Args:
        model: model of a `spec.Backbone`.
        rows: model inputs of the split.
        split: split to draw rows from.
        classes: number of classes.
        seed: seed of the draw.

    Returns:
        The result, or None where rows do not have exactly one class, the backbone has no `pooled`
        feature, or no class has a second row to hold out.
    """
    if split.targets.ndim != 1 or "pooled" not in model.output:
        return None
    fitted, held_out = _draw_rows(split.targets, classes, seed)
    if not len(held_out):
        return None
    positions = np.concatenate([fitted, held_out])
    # A model of this output alone does not compute the others.
    vector = keras.Model(model.inputs, model.output["pooled"])
    features = np.zeros((len(positions), int(vector.output.shape[-1])), np.float32)
    index_of = {int(row): i for i, row in enumerate(positions)}
    lengths = split.lengths[positions]
    # Positions among the drawn rows -> positions in the split.
    for batch in batches.plan_sorted(lengths, 32):
        batch_rows = batches.Batch(positions[batch.positions], batch.width)
        batch_features = vector.predict_on_batch(rows.arrays(batch_rows))
        features[[index_of[int(p)] for p in batch_rows.positions]] = batch_features
    # The features of fitted rows come first, as in `positions`.
    num_fitted = len(fitted)
    held_out_labels = split.targets[held_out]
    scores = least_squares(
        features[:num_fitted], split.targets[fitted], features[num_fitted:], classes
    )
    return Probe(
        accuracy=float((scores.argmax(axis=1) == held_out_labels).mean()),
        chance=float(np.bincount(held_out_labels).max() / len(held_out_labels)),
        num_fitted=num_fitted,
        num_held_out=len(held_out),
    )


def least_squares(
    features: np.ndarray, labels: np.ndarray, held_out: np.ndarray, classes: int
) -> np.ndarray:
    """Fit ridge regression of +1 and -1 on standardised features, and score other rows.

    Args:
        features: [N, D].
        labels: class ids, [N].
        held_out: features of the rows to score, [M, D].
        classes: number of classes, C.

    Returns:
        Scores, [M, C].
    """
    fitted_x, other_x = features.astype(np.float64), held_out.astype(np.float64)
    # Of the fitted rows alone: the held-out rows must not enter the classifier.
    mean, deviation = fitted_x.mean(axis=0), np.maximum(fitted_x.std(axis=0), 1e-5)
    fitted_x, other_x = (fitted_x - mean) / deviation, (other_x - mean) / deviation
    y = np.where(np.arange(classes) == labels[:, None], 1.0, -1.0)  # [N, C]
    # Solve the smaller of two equivalent systems: D x D, or N x N with fewer rows than features.
    offset = y.mean(axis=0)  # [C], the intercept, which is not penalised
    if len(fitted_x) < fitted_x.shape[1]:
        dual = np.linalg.solve(fitted_x @ fitted_x.T + RIDGE * np.eye(len(fitted_x)), y - offset)
        return other_x @ (fitted_x.T @ dual) + offset
    weights = np.linalg.solve(
        fitted_x.T @ fitted_x + RIDGE * np.eye(fitted_x.shape[1]), fitted_x.T @ (y - offset)
    )
    return other_x @ weights + offset


def _draw_rows(labels: np.ndarray, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of rows to fit and of rows to hold out, balanced over the classes."""
    generator = np.random.default_rng(seed)
    limit = max(1, MAX_ROWS // (2 * max(1, classes)))
    num_fitted, num_held_out = min(NUM_FITTED, limit), min(NUM_HELD_OUT, limit)
    fitted, held_out = [], []
    for label in np.unique(labels):
        class_rows = generator.permutation(np.flatnonzero(labels == label))
        # At most half of a class, so that rows to hold out remain.
        num_first = min(num_fitted, (len(class_rows) + 1) // 2)
        fitted.append(class_rows[:num_first])
        held_out.append(class_rows[num_first : num_first + num_held_out])
    return np.sort(np.concatenate(fitted)), np.sort(np.concatenate(held_out))
