"""The n best answers of each row from the start and end logits of its windows, in numpy.

Equal to `postprocess_qa_predictions` of transformers' question-answering examples (`utils_qa.py`),
after Devlin et al. 2019, "BERT", sections 4.2 and 4.3. As there, a window's candidates are the
pairs of its n best starts and n best ends, not the n best of all pairs: the two differ if a good
pair has an end below the n best.

W windows of T tokens; R rows; n answers of a row. `window_candidates` reduces a batch of logits to
what `merge` needs, so that the logits of a data set are never held together. Two differences from
the original: equal logits are ordered by position, the lower first (there the order is numpy's
choice), and a row without a candidate is answered by an empty text, not by the word "empty".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfft.data.answer_positions import span_text
from tfft.evaluation import metrics

N_BEST = 20
MAX_ANSWER_LENGTH = 30  # tokens


@dataclass(frozen=True)
class Candidates:
    """The best spans of windows, the best first.

    Attributes:
        spans: first byte in the context and one after the last, int64 [W, n, 2]; 0 beyond `counts`.
        logits: of the start and the end token, [W, n, 2]; their sum is the score.
        counts: number of candidates of each window, int64 [W].
        null_logits: start and end logit of the CLS token, which stands for no answer, [W, 2].
    """

    spans: np.ndarray
    logits: np.ndarray
    counts: np.ndarray
    null_logits: np.ndarray


def window_candidates(
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    offsets: np.ndarray,
    is_context: np.ndarray,
    is_token: np.ndarray | None = None,
    n_best: int = N_BEST,
    max_answer_length: int = MAX_ANSWER_LENGTH,
) -> Candidates:
    """Return the best spans of each window.

    Args:
        start_logits, end_logits: float [W, T].
        offsets: start and end of each token in the context, bytes of UTF-8, int [W, T, 2].
        is_context: whether a token is one of the context, bool [W, T].
        is_token: False for padding, bool [W, T]. As in the original, the n best starts and ends
            are those of all positions, and the ones outside of the context are dropped after that;
            without this mask they depend on the padding. None: the original's behaviour for
            windows that are padded before the model.
        n_best: number of starts, of ends and of candidates.
        max_answer_length: of a candidate, in tokens.

    Raises:
        ValueError: the arrays do not have these shapes, or `n_best` is below 1.
    """
    shape = start_logits.shape
    shapes = [end_logits.shape, is_context.shape, offsets.shape[:2]]
    if is_token is not None:
        shapes.append(is_token.shape)
    if any(s != shape for s in shapes) or len(shape) != 2 or n_best < 1:
        raise ValueError(
            "logits and masks must be [W, T], offsets [W, T, 2] and n_best at least 1. Received: "
            f"{[list(s) for s in (shape, *shapes)]}, n_best {n_best}"
        )
    parts = []
    for rows in _slices(len(start_logits), min(n_best, shape[1]) ** 2):
        mask = None if is_token is None else is_token[rows]
        starts = _best_positions(start_logits[rows], mask, n_best)  # [w, n]
        ends = _best_positions(end_logits[rows], mask, n_best)
        parts.append(
            _pairs(
                (starts, np.take_along_axis(start_logits[rows], starts, axis=1)),
                (ends, np.take_along_axis(end_logits[rows], ends, axis=1)),
                offsets[rows],
                is_context[rows],
                n_best,
                max_answer_length,
            )
        )
    null_logits = [x[:, 0] for x in (start_logits, end_logits)]  # of the CLS token
    spans, logits, counts = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Candidates(spans, logits, counts, np.stack(null_logits, axis=1))


def _slices(windows: int, width: int) -> list[slice]:
    """Return slices of windows of which an array [size, width] is small; at least one slice."""
    slices, start = [], 0
    for size in metrics.chunks(windows, max(1, width)):
        slices.append(slice(start, start + size))
        start += size
    return slices or [slice(0, 0)]


def _best_positions(logits: np.ndarray, is_token: np.ndarray | None, n_best: int) -> np.ndarray:
    """Return the positions of the largest logits, the largest first, int64 [w, min(n, T)]."""
    if is_token is not None:
        logits = np.where(is_token, logits, -np.inf)
    return np.argsort(-logits, axis=1, kind="stable")[:, :n_best]


def _pairs(
    starts: tuple[np.ndarray, np.ndarray],
    ends: tuple[np.ndarray, np.ndarray],
    offsets: np.ndarray,
    is_context: np.ndarray,
    n_best: int,
    max_answer_length: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the spans [w, n, 2], the logits [w, n, 2] and the number [w] of the best pairs.

    Args:
        starts: positions and logits of the best starts, each [w, s].
        ends: positions and logits of the best ends, each [w, s].
        offsets: [w, T, 2].
        is_context: [w, T].
        n_best: number of pairs.
        max_answer_length: in tokens.
    """
    (first, first_logits), (last, last_logits) = starts, ends
    lengths = last[:, None, :] - first[:, :, None] + 1  # [w, s, s]
    is_valid = (lengths > 0) & (lengths <= max_answer_length)
    is_valid &= np.take_along_axis(is_context, first, axis=1)[:, :, None]
    is_valid &= np.take_along_axis(is_context, last, axis=1)[:, None, :]
    scores = np.where(is_valid, first_logits[:, :, None] + last_logits[:, None, :], -np.inf)
    # Equal scores: the better start first, then the better end.
    total = first.shape[1] * last.shape[1]
    flat_scores = scores.reshape(len(first), total)
    best = np.argsort(-flat_scores, axis=1, kind="stable")[:, :n_best]  # [w, n]
    is_pair = np.take_along_axis(is_valid.reshape(len(first), total), best, axis=1)
    width = max(1, last.shape[1])
    first_rank, last_rank = best // width, best % width

    def gather(values: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        return np.where(is_pair, np.take_along_axis(values, ranks, axis=1), 0)

    start_offsets = np.take_along_axis(offsets[..., 0], first, axis=1)  # [w, s]
    end_offsets = np.take_along_axis(offsets[..., 1], last, axis=1)
    spans = [gather(start_offsets, first_rank), gather(end_offsets, last_rank)]
    logits = [gather(first_logits, first_rank), gather(last_logits, last_rank)]
    return (
        np.stack(spans, axis=2).astype(np.int64),
        np.stack(logits, axis=2),
        is_pair.sum(axis=1),
    )


@dataclass(frozen=True)
class NBest:
    """The best answers of each row, the best first; entries beyond `counts` are 0.

    Attributes:
        spans: first byte in the context and one after the last, int64 [R, n + 1, 2]; (0, 0): none.
        logits: of the start and the end token, [R, n + 1, 2].
        is_null: whether an entry is no answer, bool [R, n + 1].
        counts: number of entries of each row, int64 [R].
        null_logits: start and end logit of no answer, in the window with the smallest sum, [R, 2].
    """

    spans: np.ndarray
    logits: np.ndarray
    is_null: np.ndarray
    counts: np.ndarray
    null_logits: np.ndarray

    def scores(self) -> np.ndarray:
        """Return the sum of the logits of each entry, [R, n + 1]."""
        return self.logits.sum(axis=2)

    def probabilities(self) -> np.ndarray:
        """Compute the softmax over the entries of each row, float64 [R, n + 1]."""
        is_entry = np.arange(self.spans.shape[1]) < self.counts[:, None]
        scores = np.where(is_entry, self.scores().astype(np.float64), -np.inf)
        # 0 in place of a row's maximum if it has no entry.
        largest = np.where(self.counts > 0, scores.max(axis=1), 0.0)
        exponentials = np.exp(scores - largest[:, None])
        return metrics.ratio(exponentials, exponentials.sum(axis=1, keepdims=True))

    def best(self) -> np.ndarray:
        """Return the index of the best entry whose text is not empty, int64 [R]; -1: none."""
        has_text = self.spans[..., 1] > self.spans[..., 0]
        return np.where(has_text.any(axis=1), has_text.argmax(axis=1), -1)

    def margins(self) -> np.ndarray:
        """Return the null margin of each row, [R].

        The score of no answer minus that of the best answer; a row without an answer counts as if
        that had a score of 0.
        """
        best = self.best()
        logits = self.logits[np.arange(len(best)), best]  # [R, 2]
        logits = np.where(best[:, None] >= 0, logits, 0)
        # In this order, as in the original: float32 sums depend on it.
        return self.null_logits.sum(axis=1) - logits[:, 0] - logits[:, 1]


def merge(
    candidates: Candidates,
    rows: np.ndarray,
    n_best: int = N_BEST,
    with_null: bool = False,
) -> NBest:
    """Return the best answers of each row over its windows.

    Args:
        candidates: of all windows of the rows, with the same `n_best`; equal scores are ordered as
            the windows are.
        rows: row of each window, int [W]; R is the largest + 1.
        n_best: number of answers of a row.
        with_null: whether no answer is one of the entries; if it is not among the best, it is
            appended to them.

    Raises:
        ValueError: a row below R has no window.
    """
    rows = np.asarray(rows, np.int64)
    total = int(rows.max()) + 1 if len(rows) else 0
    missing = np.flatnonzero(np.bincount(rows, minlength=total) == 0)
    if len(missing):
        raise ValueError(f"each row needs a window. Received: none of row {missing[0]}")
    # 1. The window of each row with the smallest null score; the first of equal ones.
    order = np.lexsort((candidates.null_logits.sum(axis=1), rows))
    null_logits = candidates.null_logits[order[_starts(rows[order])]]  # [R, 2]
    # 2. The candidates of all windows in a list, and after them a null entry of each row.
    window, rank = np.nonzero(
        np.arange(candidates.spans.shape[1]) < candidates.counts[:, None]
    )  # [E]
    nulls = total if with_null else 0
    entry_rows = np.concatenate([rows[window], np.arange(nulls)])
    spans = np.concatenate([candidates.spans[window, rank], np.zeros((nulls, 2), np.int64)])
    logits = np.concatenate([candidates.logits[window, rank], null_logits[:nulls]])
    is_null = np.repeat([False, True], [len(window), nulls])
    # 3. Sort by row and score, which is stable; keep the n best of each row.
    order = np.lexsort((-logits.sum(axis=1), entry_rows))
    entry_rows, spans, logits, is_null = (x[order] for x in (entry_rows, spans, logits, is_null))
    position = np.arange(len(order)) - np.searchsorted(entry_rows, entry_rows)  # within the row
    is_best = position < n_best
    # 4. No answer comes last if it was dropped. The original recognises it by its span (0, 0).
    is_null_span = (spans == 0).all(axis=1) & is_best
    has_null = np.bincount(entry_rows[is_null_span], minlength=total) > 0
    is_appended = is_null & ~is_best & ~has_null[entry_rows]
    position[is_appended] = n_best
    selected = is_best | is_appended
    index = (entry_rows[selected], position[selected])

    def padded(values: np.ndarray) -> np.ndarray:
        array = np.zeros((total, n_best + 1, *values.shape[1:]), values.dtype)
        array[index] = values[selected]
        return array

    counts = np.bincount(entry_rows[selected], minlength=total)
    return NBest(padded(spans), padded(logits), padded(is_null), counts, null_logits)


def _starts(sorted_keys: np.ndarray) -> np.ndarray:
    """Return the position of the first of each run of equal keys."""
    return np.flatnonzero(np.diff(sorted_keys, prepend=-1))


def texts(contexts: Sequence[str], spans: np.ndarray) -> list[str]:
    """Return the text of a span [R, 2] of each context; see `span_text`."""
    pairs = zip(contexts, spans.tolist(), strict=True)
    return [span_text(context, start, end) for context, (start, end) in pairs]
