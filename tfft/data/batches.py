"""Batches by length buckets: few widths, little padding, any position reached at once.

The batches of an epoch are a function of (split, batch size, widths, seed, epoch) alone, so that
a run resumes at batch k by making the plan again and leaving out its first k batches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tfft.data.split import Dataset

MULTIPLE = 8  # widths are multiples of it: tensor cores and vector units like that


def widths(lengths: np.ndarray, count: int) -> tuple[int, ...]:
    """At most `count` widths that pad these lengths the least, ascending.

    Exact, by dynamic programming over the multiples of `MULTIPLE` that occur.
    """
    rounded = -(-lengths // MULTIPLE) * MULTIPLE
    values, rows = np.unique(rounded, return_counts=True)
    total = len(values)
    # cost[j] after k rounds: least tokens for the values up to j in k buckets.
    before = np.concatenate([[0], np.cumsum(rows)])
    cost = values * before[1:]
    choice: list[np.ndarray] = []
    for _ in range(min(count, total) - 1):
        options = np.full((total, total), np.iinfo(np.int64).max)
        for j in range(1, total):
            options[j, :j] = cost[:j] + values[j] * (before[j + 1] - before[1 : j + 1])
        best = options.argmin(axis=1)
        better = options[np.arange(total), best] < cost
        choice.append(np.where(better, best, -1))
        cost = np.where(better, options[np.arange(total), best], cost)
    chosen, at = [int(values[-1])], total - 1
    for back in reversed(choice):
        if back[at] >= 0:
            at = int(back[at])
            chosen.append(int(values[at]))
    return tuple(reversed(chosen))


@dataclass(frozen=True)
class Batch:
    """Positions in a split that go together, and the width that they are padded to."""

    positions: np.ndarray
    width: int


def plan(
    lengths: np.ndarray, batch_size: int, buckets: Sequence[int], seed: int, epoch: int
) -> list[Batch]:
    """One epoch: every position once, in shuffled batches of one width each.

    What is left over in a bucket rides in the next wider one, so only one batch of the epoch
    can be smaller than `batch_size`: ceil(rows / batch_size) steps, as without buckets.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    bucket_of = np.searchsorted(buckets, lengths[order])
    batches, left = [], np.zeros(0, np.int64)
    for index, width in enumerate(buckets):
        members = generator.permutation(np.concatenate([left, order[bucket_of == index]]))
        full = len(members) // batch_size * batch_size
        batches += [
            Batch(members[at : at + batch_size], width) for at in range(0, full, batch_size)
        ]
        left = members[full:]
    if len(left):
        batches.append(Batch(left, buckets[-1]))
    return [batches[i] for i in generator.permutation(len(batches))]


def in_order(lengths: np.ndarray, batch_size: int) -> list[Batch]:
    """Every position once, by length, for prediction: the least padding, no shuffling."""
    order = np.argsort(lengths, kind="stable")
    batches = []
    for at in range(0, len(order), batch_size):
        positions = order[at : at + batch_size]
        longest = int(lengths[positions].max())
        batches.append(Batch(positions, -(-longest // MULTIPLE) * MULTIPLE))
    return batches


def padding_share(lengths: np.ndarray, batches: Sequence[Batch]) -> float:
    """The share of tokens that are padding."""
    tokens = sum(len(batch.positions) * batch.width for batch in batches)
    return 1 - int(lengths.sum()) / max(1, tokens)


def arrays(split: Dataset, batch: Batch, pad_id: int) -> dict[str, np.ndarray]:
    """A batch's `{token_ids, padding_mask, segment_ids}`, int32 [B, width]."""
    shape = (len(batch.positions), batch.width)
    tokens, mask = np.full(shape, pad_id, np.int32), np.zeros(shape, np.int32)
    segments = np.zeros(shape, np.int32)
    for at, position in enumerate(batch.positions):
        ids, segment = split.prepared.tokens(int(split.rows[position]))
        tokens[at, : len(ids)] = ids
        segments[at, : len(ids)] = segment
        mask[at, : len(ids)] = 1
    return {"token_ids": tokens, "padding_mask": mask, "segment_ids": segments}


def dataset(
    split: Dataset,
    batches: Sequence[Batch],
    pad_id: int,
    class_weights: np.ndarray | None = None,
) -> tf.data.Dataset:
    """Batches as `tf.data`: (inputs, class ids [B], weights [B]), read ahead of the step."""

    def rows() -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]]:
        for batch in batches:
            labels = split.labels[batch.positions]
            weights = np.ones(len(labels)) if class_weights is None else class_weights[labels]
            yield arrays(split, batch, pad_id), labels, weights.astype(np.float32)

    ids = tf.TensorSpec([None, None], tf.int32)
    inputs = {"token_ids": ids, "padding_mask": ids, "segment_ids": ids}
    spec = (inputs, tf.TensorSpec([None], tf.int32), tf.TensorSpec([None], tf.float32))
    made = tf.data.Dataset.from_generator(rows, output_signature=spec)
    made = made.apply(tf.data.experimental.assert_cardinality(len(batches)))
    return made.prefetch(4)
