"""Arrays with a varying number of entries in each row."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """The entries of N rows, row after row, such as the tags of the words of texts.

    Attributes:
        values: the entries, [E, ...].
        ends: the end of each row in `values`, int64 [N].
    """

    values: np.ndarray
    ends: np.ndarray

    @classmethod
    def from_rows(cls, rows: Sequence[np.ndarray], dtype: type) -> "Ragged":
        """Return the rows, an array each, in one."""
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        return cls(np.concatenate([np.zeros(0, dtype), *rows]).astype(dtype), ends)

    def __len__(self) -> int:
        return len(self.ends)

    @cached_property
    def starts(self) -> np.ndarray:
        """The start of each row in `values`, int64 [N]."""
        return np.concatenate([np.zeros(1, np.int64), self.ends])[: len(self.ends)]

    @property
    def lengths(self) -> np.ndarray:
        """Number of entries of each row, int64 [N]."""
        return self.ends - self.starts

    @property
    def row_ids(self) -> np.ndarray:
        """Row of each entry, int64 [E]."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def indices(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where the entries of some rows are.

        Args:
            rows: int [B].

        Returns:
            For each entry of these rows, in their order: its index in `values`, and the index of
            its row in `rows`, both int64.
        """
        lengths = self.ends[rows] - self.starts[rows]
        ends = np.cumsum(lengths)
        position = np.repeat(np.arange(len(rows)), lengths)
        total = int(ends[-1]) if len(ends) else 0
        return np.arange(total) + np.repeat(self.starts[rows] - (ends - lengths), lengths), position

    def __getitem__(self, rows: Any) -> Any:
        """Return the entries of a row, or some rows, int [B], as an array of their own."""
        if np.ndim(rows) == 0:
            return self.values[int(self.starts[rows]) : int(self.ends[rows])]
        ends = np.cumsum(self.ends[rows] - self.starts[rows])
        return Ragged(self.values[self.indices(rows)[0]], ends)

    def with_values(self, values: np.ndarray) -> "Ragged":
        """Return other entries, [E, ...], in the same rows."""
        return Ragged(values, self.ends)

    def tobytes(self) -> bytes:
        """Return the content, for digests."""
        return self.ends.tobytes() + np.ascontiguousarray(self.values).tobytes()
