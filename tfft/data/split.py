"""Views of prepared rows: a split is a set, the rows it takes, and their class ids."""

from dataclasses import dataclass

import numpy as np

from tfft.data.prepare import Prepared


@dataclass(frozen=True)
class Dataset:
    """One split.

    Attributes:
        prepared: the tokenised set; several splits may share one.
        rows: indices into it, [N].
        labels: class id of each, int32 [N].
    """

    prepared: Prepared
    rows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, [N]."""
        return self.prepared.lengths[self.rows]

    def texts(self, at: int) -> tuple[str, ...]:
        """The raw texts of the row at a position of this split."""
        return self.prepared.texts(int(self.rows[at]))

    def take(self, positions: np.ndarray) -> "Dataset":
        """The rows at some positions, as a split of their own."""
        return Dataset(self.prepared, self.rows[positions], self.labels[positions])


def stratified(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions kept and positions held out, each class in proportion; both sorted.

    Every class keeps at least one row; one with a single row holds none out.
    """
    generator = np.random.default_rng([seed, round(fraction * 1e6)])
    held = []
    for label in np.unique(labels):
        positions = generator.permutation(np.flatnonzero(labels == label))
        size = min(max(1, round(fraction * len(positions))), len(positions) - 1)
        held.append(positions[:size])
    out = np.sort(np.concatenate(held))
    kept = np.setdiff1d(np.arange(len(labels)), out, assume_unique=True)
    return kept, out
