"""Splits as views of prepared rows: a prepared set, the selected rows, and their targets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from tfft.data.images import PreparedImages
from tfft.data.targets import Targets
from tfft.data.texts import PreparedTexts
from tfft.utils.ragged import Ragged


@dataclass(frozen=True)
class Dataset:
    """One split.

    Attributes:
        prepared: the prepared set; several splits may share one.
        rows: indices into the set, [N].
        targets: what the model is to predict, as `kind` says: an array [N, ...], or `Ragged` with
            an entry for each word.
        kind: the kind of targets.
    """

    prepared: PreparedTexts | PreparedImages
    rows: np.ndarray
    targets: Any
    kind: Targets

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def examples(self) -> np.ndarray:
        """What the model reads: indices of the rows in the set, or of all their windows, [E]."""
        ends = self.prepared.window_ends
        return self.rows if ends is None else Ragged(np.zeros(0), ends).indices(self.rows)[0]

    @cached_property
    def example_rows(self) -> np.ndarray:
        """Position of the row of each example, ascending, int [E]."""
        ends = self.prepared.window_ends
        if ends is None:
            return np.arange(len(self))
        return Ragged(np.zeros(0), ends).indices(self.rows)[1]

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each example, [E]; the same for all of them if they are images."""
        return self.prepared.lengths[self.examples]

    @cached_property
    def units(self) -> np.ndarray | None:
        """Unit of each example, int [E], such as its context; None: all are independent."""
        units = self.kind.units(self.prepared)
        if units is not None:
            return units[self.rows][self.example_rows]
        # Windows of one text.
        return None if len(self.examples) == len(self) else self.example_rows

    def of_tokens(self, name: str) -> Ragged:
        """Return an int32 of each token of each example, as the targets have stored it."""
        return self._examples_of(self.prepared.of_tokens(name))

    @cached_property
    def token_offsets(self) -> tuple[Ragged, Ragged]:
        """Where each token of each example begins and ends in a context, int32; -1 outside."""
        return self.of_tokens("token_starts"), self.of_tokens("token_ends")

    @property
    def word_tokens(self) -> Ragged:
        """The first token of each word of each example, int32; see `words.tokens_of_words`."""
        return self._examples_of(self.prepared.word_tokens)

    def _examples_of(self, ragged: Ragged) -> Ragged:
        # A split of all rows copies nothing.
        is_all = np.array_equal(self.examples, np.arange(len(ragged)))
        return ragged if is_all else ragged[self.examples]

    def words(self, position: int) -> list[str]:
        """Return the words of the row at a position, each up to the next one, without spaces."""
        text = self.raw_row(position)[0].encode("utf-8", "surrogatepass")
        starts = self.prepared.word_starts[int(self.rows[position])]
        ends = [*starts[1:], len(text)]
        parts = (text[start:end] for start, end in zip(starts, ends, strict=True))
        return [part.decode("utf-8", "replace").rstrip() for part in parts]

    def text_of(self, position: int, first: int, end: int) -> str:
        """Return the text from a word of the row at a position up to another, `end` excluded."""
        text = self.raw_row(position)[0].encode("utf-8", "surrogatepass")
        starts = [*self.prepared.word_starts[int(self.rows[position])], len(text)]
        return text[starts[first] : starts[end]].decode("utf-8", "replace").rstrip()

    def constant(self, logits: np.ndarray) -> Any:
        """Return the same logits [C] for each row, [N, C], or for each word (`Ragged`)."""
        if isinstance(self.targets, Ragged):
            return self.targets.with_values(np.tile(logits, (len(self.targets.values), 1)))
        return np.tile(logits, (len(self), 1))

    def texts(self, position: int) -> tuple[str, ...]:
        """Return the texts of the row at a position, without its image."""
        return self.prepared.texts(int(self.rows[position]))

    def raw_row(self, position: int) -> tuple[Any, ...]:
        """Return the raw values of the row at a position: texts, and an image's path or bytes."""
        return self.prepared.raw_row(int(self.rows[position]))

    def target_text(self, position: int, labels: Sequence[str]) -> str:
        """Return the target of the row at a position as text."""
        return self.kind.text(self.targets[position], labels)

    def summary(self, labels: Sequence[str]) -> dict[str, int | float]:
        """Return statistics of the targets by name, such as the rows of each class."""
        return self.kind.summary(self.targets, labels)

    def take(self, positions: np.ndarray) -> "Dataset":
        """Return the rows at some positions as a separate split."""
        return replace(self, rows=self.rows[positions], targets=self.targets[positions])


def stratified(groups: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split positions into kept and held-out ones, each group in proportion; both sorted.

    Each group keeps at least one row, so a group with a single row holds none out.

    Args:
        groups: group of each row, [N], such as its class.
        fraction: share of the rows to hold out.
        seed: of the split.

    Returns:
        Positions kept and positions held out.
    """
    generator = np.random.default_rng([seed, round(fraction * 1e6)])
    held_by_group = []
    for group in np.unique(groups):
        positions = generator.permutation(np.flatnonzero(groups == group))
        size = min(max(1, round(fraction * len(positions))), len(positions) - 1)
        held_by_group.append(positions[:size])
    held_out = np.sort(np.concatenate(held_by_group))
    remaining = np.setdiff1d(np.arange(len(groups)), held_out, assume_unique=True)
    return remaining, held_out


def together(units: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split positions into kept and held-out ones, all rows of a unit on one side; both sorted.

    At least one unit is kept, and one held out if there are two.

    Args:
        units: unit of each row, [N], such as its context.
        fraction: share of the rows to hold out, about.
        seed: of the split.

    Returns:
        Positions kept and positions held out.
    """
    generator = np.random.default_rng([seed, round(fraction * 1e6)])
    names, counts = np.unique(units, return_counts=True)
    order = generator.permutation(len(names))
    # As many of the drawn units as come nearest to the share.
    ends = np.cumsum(counts[order])
    number = 1 + int(np.abs(ends - fraction * len(units)).argmin())
    held_units = names[order[: min(number, len(names) - 1)]]
    is_held = np.isin(units, held_units)
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)
