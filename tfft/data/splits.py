"""Splits as views of prepared rows: a prepared set, the selected rows, and their class ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfft.data.images import PreparedImages
from tfft.data.texts import PreparedTexts


@dataclass(frozen=True)
class Dataset:
    """One split.

    Attributes:
        prepared: the prepared set; several splits may share one.
        rows: indices into the set, [N].
        labels: class ids, int32 [N], or with several labels in a row 0 or 1, float32 [N, C].
    """

    prepared: PreparedTexts | PreparedImages
    rows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each row, [N]; the same for all rows if they are images."""
        return self.prepared.lengths[self.rows]

    def raw_row(self, position: int) -> tuple[Any, ...]:
        """Return the raw values of the row at a position: texts, or an image path or bytes."""
        return self.prepared.raw_row(int(self.rows[position]))

    def label_name(self, position: int, labels: Sequence[str]) -> str:
        """Return the label name of the row at a position; several are joined by |."""
        if self.labels.ndim == 1:
            return labels[self.labels[position]]
        return "|".join(labels[i] for i in np.flatnonzero(self.labels[position]))

    def counts(self, classes: int) -> np.ndarray:
        """Return the number of rows of each class, [C]."""
        if self.labels.ndim == 2:
            return self.labels.sum(axis=0).astype(np.int64)
        return np.bincount(self.labels, minlength=classes)

    def take(self, positions: np.ndarray) -> "Dataset":
        """Return the rows at some positions as a separate split."""
        return Dataset(self.prepared, self.rows[positions], self.labels[positions])


def stratified(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split positions into kept and held-out ones, each class in proportion; both sorted.

    Each class keeps at least one row, so a class with a single row holds none out. Rows with
    several labels ([N, C]) count for the rarest of them.

    Args:
        labels: [N] or [N, C].
        fraction: share of the rows to hold out.
        seed: of the split.

    Returns:
        Positions kept and positions held out.
    """
    generator = np.random.default_rng([seed, round(fraction * 1e6)])
    if labels.ndim == 2:
        labels = _rarest(labels)
    held_by_class = []
    for label in np.unique(labels):
        positions = generator.permutation(np.flatnonzero(labels == label))
        size = min(max(1, round(fraction * len(positions))), len(positions) - 1)
        held_by_class.append(positions[:size])
    held_out = np.sort(np.concatenate(held_by_class))
    remaining = np.setdiff1d(np.arange(len(labels)), held_out, assume_unique=True)
    return remaining, held_out


def _rarest(labels: np.ndarray) -> np.ndarray:
    """Return the rarest label of each row of [N, C], -1 for a row without labels."""
    counts = labels.sum(axis=0)
    class_sizes = np.where(labels > 0, counts, np.inf)
    # Without labels, `argmin` over infinities would be class 0.
    return np.where(labels.any(axis=1), class_sizes.argmin(axis=1), -1)
