"""Batches by length buckets: few widths, little padding, any position reached at once.

The batches of an epoch are a function of (split, batch size, widths, seed, epoch) alone, so that
a run resumes at batch k by making the plan again and leaving out its first k batches.
"""

import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from keras import tree

from tfft.data.splits import Dataset

STACKED = 16  # batches that come from Python at once, where they have the same shapes
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
    """Positions in a split that go together, and the width that they are padded to.

    `draw` is a number of its own over the whole training, from which all that is random in it
    follows; `piece` tells the parts of one batch apart.
    """

    positions: np.ndarray
    width: int
    draw: int = 0
    piece: int = 0


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
    order = generator.permutation(len(batches))
    first = epoch * len(batches)
    return [replace(batches[i], draw=first + at) for at, i in enumerate(order)]


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


class Rows(Protocol):
    """The inputs of the rows of a split, batch by batch.

    `arrays` gives them whole. In training they may be made in two steps, so that the heavy one runs
    in TensorFlow, ahead of the model and on many threads: `source` is what Python hands over, and
    `finish` makes the inputs of it.

    Attributes:
        uniform: whether batches of as many rows have the same shapes, whatever their width.
        pad_id: what fills up token ids.
        at_once: batches that `finish` works on together; 0: there is no second step.
    """

    uniform: bool
    pad_id: int
    at_once: int

    def arrays(self, batch: Batch) -> dict[str, np.ndarray]:
        """Inputs by name, each [B, ...]."""

    def spec(self, rows: int | None, width: int | None) -> dict[str, tf.TensorSpec]:
        """Shapes and types of `arrays`, for B rows of some width; None: not known."""

    def source(self, batch: Batch) -> dict[str, np.ndarray]:
        """What `finish` takes."""

    def source_spec(self, rows: int | None, width: int | None) -> dict[str, tf.TensorSpec]:
        """Of `source`."""

    def finish(self, given: Any, targets: tf.Tensor) -> Any:
        """What `source` gave, and the targets [B, ...] -> the inputs and the targets."""


class Whole:
    """Rows whose inputs are made in one step."""

    pad_id = 0
    at_once = 0

    def source(self, batch: Batch) -> dict[str, np.ndarray]:
        """The inputs."""
        return self.arrays(batch)

    def source_spec(self, rows: int | None, width: int | None) -> dict[str, tf.TensorSpec]:
        """Theirs."""
        return self.spec(rows, width)

    def finish(self, given: Any, targets: tf.Tensor) -> Any:
        """Nothing is left to do."""
        return given, targets


@dataclass(frozen=True)
class Tokens(Whole):
    """The token ids of a split's rows: `{token_ids, padding_mask, segment_ids}`."""

    split: Dataset
    pad_id: int = 0
    uniform = False

    def arrays(self, batch: Batch) -> dict[str, np.ndarray]:
        """Each int32 [B, width]."""
        shape = (len(batch.positions), batch.width)
        tokens, mask = np.full(shape, self.pad_id, np.int32), np.zeros(shape, np.int32)
        segments = np.zeros(shape, np.int32)
        for at, position in enumerate(batch.positions):
            ids, segment = self.split.prepared.tokens(int(self.split.rows[position]))
            tokens[at, : len(ids)] = ids
            segments[at, : len(ids)] = segment
            mask[at, : len(ids)] = 1
        return {"token_ids": tokens, "padding_mask": mask, "segment_ids": segments}

    def spec(self, rows: int | None, width: int | None) -> dict[str, tf.TensorSpec]:
        """Of `arrays`."""
        ids = tf.TensorSpec([rows, width], tf.int32)
        return {"token_ids": ids, "padding_mask": ids, "segment_ids": ids}


@dataclass(frozen=True)
class Pieces:
    """Which parts of each batch are read here: replica r of `of` takes the r-th part.

    Attributes:
        replicas: those of this worker, in order; each gets an element of its own.
        of: all replicas there are.
    """

    replicas: Sequence[int] = (0,)
    of: int = 1

    def cut(self, batch: Batch) -> Iterator[Batch]:
        """The parts of a batch; they may be of different size, and empty."""
        parts = np.array_split(batch.positions, self.of)
        for replica in self.replicas:
            yield replace(batch, positions=parts[replica], piece=replica)


def dataset(
    rows: Rows,
    targets: np.ndarray,
    weights: np.ndarray,
    batches: Iterable[Batch],
    pieces: Pieces | None = None,
    shape: tuple[int | None, int | None] = (None, None),
) -> tf.data.Dataset:
    """Batches as `tf.data`: (inputs, targets [B, ...], weights [B]), read ahead of the step.

    Args:
        rows: the inputs.
        targets: of every row of the split, [N] or [N, ...].
        weights: of every row, float32 [N].
        batches: read once for each iteration over the data set.
        pieces: which parts of the batches; default: all of each.
        shape: rows and width of every element where they are fixed (TPU): smaller ones are filled
            up with rows of weight 0, and the others' weights raised so that the mean stays.
    """
    count = shape[0]
    inputs = rows.source_spec(*shape)
    source = _Source(rows, targets, weights, batches, pieces or Pieces(), count, inputs)
    # TensorFlow keeps every Python function of a graph, and so what it refers to, for as long as
    # the process lives (`ops.script_ops`): it may refer to the source weakly only. The data set
    # owns the source, and an iterator its data set.
    weak = weakref.ref(source)
    spec = (
        inputs,
        tf.TensorSpec([count, *targets.shape[1:]], targets.dtype),
        tf.TensorSpec([count], tf.float32),
    )
    # There is nothing to tune, and the tuner's thread keeps an iterator from ending for a minute.
    options = tf.data.Options()
    options.autotune.enabled = False
    if rows.uniform:
        # An element that comes from Python costs more than a small step: many come at once.
        multi_label = tree.map_structure(lambda s: tf.TensorSpec([None, *s.shape], s.dtype), spec)
        generated = tf.data.Dataset.from_generator(
            lambda: _stacked(iter(weak())), output_signature=multi_label
        )
        made = generated.prefetch(2).unbatch().prefetch(4)
    else:
        generated = tf.data.Dataset.from_generator(lambda: iter(weak()), output_signature=spec)
        made = generated.prefetch(4)
    generated._source = source
    if rows.at_once:
        made = made.map(
            lambda given, y, weight: (*rows.finish(given, y), weight),
            num_parallel_calls=rows.at_once,
            deterministic=True,
        ).prefetch(rows.at_once)
    return made.with_options(options)


@dataclass(frozen=True)
class _Source:
    """What `dataset` reads: iterating gives an element (inputs, targets, weights) at a time.

    Where `count` is given every element has so many rows, and the shapes of `spec`.
    """

    rows: Rows
    targets: np.ndarray
    weights: np.ndarray
    batches: Iterable[Batch]
    pieces: Pieces
    count: int | None
    spec: dict[str, tf.TensorSpec]

    def __iter__(self) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]]:
        for whole in self.batches:
            for batch in self.pieces.cut(whole):
                at = batch.positions
                element = self.rows.source(batch), self.targets[at], self.weights[at]
                if self.count is None:
                    yield element
                else:
                    share = len(whole.positions) / self.pieces.of  # rows that a piece stands for
                    factor = self.count / share
                    yield _filled(element, self.rows.pad_id, self.spec, self.count, factor)


def _stacked(elements: Iterator[Any]) -> Iterator[Any]:
    """Up to `STACKED` consecutive elements of the same shapes as one, stacked."""

    def shapes(element: Any) -> list[tuple[int, ...]]:
        return [value.shape for value in tree.flatten(element)]

    group: list[Any] = []
    for element in elements:
        if group and (len(group) == STACKED or shapes(element) != shapes(group[0])):
            yield tree.map_structure(lambda *values: np.stack(values), *group)
            group = []
        group.append(element)
    if group:
        yield tree.map_structure(lambda *values: np.stack(values), *group)


def _filled(
    element: tuple[dict[str, np.ndarray], np.ndarray, np.ndarray],
    pad_id: int,
    spec: dict[str, tf.TensorSpec],
    count: int,
    factor: float,
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Pad an element to `count` rows and the shapes of `spec`; multiply its weights."""
    inputs, targets, weights = element
    missing = count - len(weights)
    filled = {}
    for name, value in inputs.items():
        pads = [(0, to - now) for now, to in zip(value.shape, spec[name].shape, strict=True)]
        if value.dtype == object:  # a picture that is not there is like the last
            filled[name] = np.pad(value, pads, mode="edge")
        else:
            filled[name] = np.pad(value, pads, constant_values=pad_id if name == "token_ids" else 0)
    # A row of nothing but padding has no token to attend to: it gets one, which counts nothing.
    if "padding_mask" in filled:
        filled["padding_mask"][len(weights) :, 0] = 1
    return (
        filled,
        np.pad(targets, [(0, missing), *[(0, 0)] * (targets.ndim - 1)]),
        np.pad(weights * np.float32(factor), (0, missing)),
    )
