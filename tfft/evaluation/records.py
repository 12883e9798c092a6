"""What an evaluation keeps of the logits of a split, collected batch by batch.

The logits of a data set may not fit into the memory; a record of them does: those of each row, of
each word, or the best answers. N rows, E examples (`Dataset.examples`).
"""

from typing import Any, Protocol

import numpy as np

from tfft.data import Dataset, tags

CERTAIN = 20.0  # logit of the tag of a word without logits of its own; the others are 0


class Records(Protocol):
    """The records of a split.

    Attributes:
        arrays: by name, of all examples; 0 where nothing was put. So the arrays of several workers
            are added to those of the whole split.
    """

    arrays: dict[str, np.ndarray]

    def put(self, positions: np.ndarray, logits: np.ndarray) -> None:
        """Record the logits of some examples.

        Args:
            positions: of the examples, int [B].
            logits: of the model, [B, ...].
        """

    def merged(self) -> Any:
        """Return the record of each row, as the metrics of the task take it."""


class RowLogits:
    """The logits of each row, float32 [N, C]."""

    def __init__(self, split: Dataset, outputs: int):
        self.arrays = {"logits": np.zeros((len(split), outputs), np.float32)}

    def put(self, positions: np.ndarray, logits: np.ndarray) -> None:
        """Record the logits of some rows, [B, C]."""
        self.arrays["logits"][positions] = logits

    def merged(self) -> np.ndarray:
        """Return the logits of all rows, [N, C]."""
        return self.arrays["logits"]


class WordLogits:
    """The logits of each word, those of its first token: `Ragged` of N rows.

    Words that a token of an earlier word reaches over continue that word. Words without any token
    have the tag `O`, such as those that are cut off, unless an entity goes on behind them.
    """

    def __init__(self, split: Dataset, outputs: int):
        self._split, self._tokens = split, split.word_tokens
        words = len(self._tokens.values)
        self.arrays = {"logits": np.zeros((words, outputs), np.float32)}

    def put(self, positions: np.ndarray, logits: np.ndarray) -> None:
        """Record the logits of the tokens of some windows, [B, T, C]."""
        indices, in_batch = self._tokens.indices(positions)
        self.arrays["logits"][indices] = word_logits(logits, in_batch, self._tokens.values[indices])

    def merged(self) -> Any:
        """Return the logits of the words of each row."""
        # The windows of a row hold its words in order.
        targets = self._split.targets
        return targets.with_values(
            bridge_entities(self.arrays["logits"], self._tokens.values == -1, targets.row_ids)
        )


def word_logits(logits: np.ndarray, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return the logits of words, [W, C], from those of the tokens of a batch.

    Args:
        logits: [B, T, C].
        rows: row of each word in the batch, int [W].
        tokens: first token of each word, int [W], as `words.tokens_of_words` gives them.
    """
    joined = tokens < -1
    of_words = logits[rows, np.where(joined, -2 - tokens, tokens)]
    certain = CERTAIN * np.eye(logits.shape[-1], dtype=np.float32)
    of_words[joined] = certain[tags.inside(of_words[joined].argmax(axis=1))]
    of_words[tokens == -1] = certain[0]
    return of_words


def bridge_entities(logits: np.ndarray, has_no_token: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Give words without a token the tag of the entity that goes on behind them: new logits [W, C].

    The served graph does not see such words, so they do not end an entity there.

    Args:
        logits: of the words, [W, C].
        has_no_token: whether a word has no token, nor is joined to another word, bool [W].
        rows: row of each word, ascending, int [W].
    """
    index, size = np.arange(len(rows)), len(rows)
    before = np.maximum.accumulate(np.where(has_no_token, -1, index))
    after = np.minimum.accumulate(np.where(has_no_token, size, index)[::-1])[::-1]
    words = np.flatnonzero(has_no_token & (before >= 0) & (after < size))
    words = words[rows[before[words]] == rows[after[words]]]
    first, second = (logits[neighbours[words]].argmax(axis=1) for neighbours in (before, after))
    # I-x, an even id, behind B-x or I-x.
    goes_on = (second > 0) & (second % 2 == 0) & ((first + 1) // 2 == (second + 1) // 2)
    result = logits.copy()
    result[words[goes_on]] = CERTAIN * np.eye(logits.shape[1])[second[goes_on]]
    return result
