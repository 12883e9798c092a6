"""Views of prepared rows: a split is a set, the rows it takes, and their class ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfft.data.images import Pictures
from tfft.data.texts import Tokens


@dataclass(frozen=True)
class Dataset:
    """One split.

    Attributes:
        prepared: the prepared set; several splits may share one.
        rows: indices into it, [N].
        labels: class id of each, int32 [N]; where rows may have several, 0 or 1, float32 [N, C].
    """

    prepared: Tokens | Pictures
    rows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, [N]; one number for all where rows are pictures."""
        return self.prepared.lengths[self.rows]

    def raw(self, at: int) -> tuple[Any, ...]:
        """The raw values of the row at a position of this split: texts, or a picture's path or
        bytes."""
        return self.prepared.raw(int(self.rows[at]))

    def named(self, at: int, labels: Sequence[str]) -> str:
        """The label of the row at a position; several have | between them."""
        if self.labels.ndim == 1:
            return labels[self.labels[at]]
        return "|".join(labels[i] for i in np.flatnonzero(self.labels[at]))

    def counts(self, classes: int) -> np.ndarray:
        """Rows of each class, [C]."""
        if self.labels.ndim == 2:
            return self.labels.sum(axis=0).astype(np.int64)
        return np.bincount(self.labels, minlength=classes)

    def take(self, positions: np.ndarray) -> "Dataset":
        """The rows at some positions, as a split of their own."""
        return Dataset(self.prepared, self.rows[positions], self.labels[positions])


def stratified(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions kept and positions held out, each class in proportion; both sorted.

    Every class keeps at least one row; one with a single row holds none out. Rows that may have
    several labels ([N, C]) count for the rarest of theirs.
    """
    generator = np.random.default_rng([seed, round(fraction * 1e6)])
    if labels.ndim == 2:
        labels = _rarest(labels)
    held = []
    for label in np.unique(labels):
        positions = generator.permutation(np.flatnonzero(labels == label))
        size = min(max(1, round(fraction * len(positions))), len(positions) - 1)
        held.append(positions[:size])
    out = np.sort(np.concatenate(held))
    kept = np.setdiff1d(np.arange(len(labels)), out, assume_unique=True)
    return kept, out


def _rarest(labels: np.ndarray) -> np.ndarray:
    """The rarest label of each row of [N, C], -1 for a row without one."""
    counts = labels.sum(axis=0)
    held = np.where(labels > 0, counts, np.inf)
    return np.where(labels.any(axis=1), held.argmin(axis=1), -1)
