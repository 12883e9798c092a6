"""Plan batches by length buckets: few widths, little padding, any batch reachable at once.

The batches of an epoch are a function of (split, batch size, widths, seed, epoch) alone. A run
resumes at batch k by computing the same plan and skipping its first k batches.
"""

import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from keras import tree

from tfft.data.splits import Dataset
from tfft.utils.ragged import Ragged

STACK_SIZE = 16  # batches of equal shapes that one call into Python hands to tf.data, at most
# Every width is a multiple of it: tensor cores and vector units run fastest on such shapes.
WIDTH_MULTIPLE = 8


def choose_bucket_lengths(lengths: np.ndarray, max_buckets: int) -> tuple[int, ...]:
    """Return the bucket lengths, ascending, that pad rows of these lengths the least.

    The result is exact: dynamic programming over the multiples of `WIDTH_MULTIPLE` that occur.

    Args:
        lengths: tokens of each row, [N].
        max_buckets: the most lengths to return.
    """
    rounded = -(-lengths // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
    values, counts = np.unique(rounded, return_counts=True)
    num_values = len(values)
    # cost[j] after k rounds: least tokens for the values up to j in k buckets.
    cumulative = np.concatenate([[0], np.cumsum(counts)])
    cost = values * cumulative[1:]
    choice: list[np.ndarray] = []
    for _ in range(min(max_buckets, num_values) - 1):
        options = np.full((num_values, num_values), np.iinfo(np.int64).max)
        for j in range(1, num_values):
            # The last bucket holds the values i + 1 to j, all padded to values[j].
            options[j, :j] = cost[:j] + values[j] * (cumulative[j + 1] - cumulative[1 : j + 1])
        best = options.argmin(axis=1)
        better = options[np.arange(num_values), best] < cost
        choice.append(np.where(better, best, -1))
        cost = np.where(better, options[np.arange(num_values), best], cost)
    # Follow the choices back from the longest value, which is always a bucket.
    selected, index = [int(values[-1])], num_values - 1
    for previous in reversed(choice):
        if previous[index] >= 0:
            index = int(previous[index])
            selected.append(int(values[index]))
    return tuple(reversed(selected))


@dataclass(frozen=True)
class Batch:
    """Positions in a split that form a batch, and the width that they are padded to.

    Attributes:
        positions: int [B].
        width: tokens that each row is padded to.
        draw: number of the batch, unique over the whole training; all randomness in the batch
            derives from it.
        replica: index of the replica that takes this part of the batch.
    """

    positions: np.ndarray
    width: int
    draw: int = 0
    replica: int = 0


def plan(
    lengths: np.ndarray,
    batch_size: int,
    bucket_lengths: Sequence[int],
    seed: int,
    epoch: int,
    units: np.ndarray | None = None,
) -> list[Batch]:
    """Return the batches of one epoch: each position once, shuffled, one width in each batch.

    The remainder of a bucket joins the next wider one. So only one batch of the epoch can be
    smaller than `batch_size`, and an epoch has ceil(rows / batch_size) steps, as without buckets.

    Args:
        lengths: tokens of each row, [N].
        batch_size: rows of a batch.
        bucket_lengths: lengths that rows are padded to, ascending; the last one holds the longest.
        seed: of the run.
        epoch: counts from 0.
        units: unit of each row, [N], such as its context: rows of one unit are spread over the
            batches of their width. None: all rows are independent.
    """
    # Seeded by the epoch, so that the plan of an epoch needs none of those before it.
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    # The narrowest bucket that holds each row.
    bucket_of = np.searchsorted(bucket_lengths, lengths[order])
    batches, remainder = [], np.zeros(0, np.int64)
    for index, width in enumerate(bucket_lengths):
        members = generator.permutation(np.concatenate([remainder, order[bucket_of == index]]))
        if units is not None:
            members = _spread(members, units[members], generator)
        num_full = len(members) // batch_size * batch_size
        batches += [
            Batch(members[start : start + batch_size], width)
            for start in range(0, num_full, batch_size)
        ]
        remainder = members[num_full:]
    if len(remainder):
        batches.append(Batch(remainder, bucket_lengths[-1]))
    order = generator.permutation(len(batches))
    # Number of the epoch's first batch in the whole training: all epochs have equally many.
    first = epoch * len(batches)
    return [replace(batches[i], draw=first + number) for number, i in enumerate(order)]


def _spread(members: np.ndarray, units: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return shuffled rows in an order in which those of each unit have equal distances.

    Questions about one context have similar lengths: without it they would share batches, whose
    gradients would be those of few contexts.
    """
    _, index, counts = np.unique(units, return_inverse=True, return_counts=True)
    by_unit = np.argsort(index, kind="stable")
    first = np.cumsum(counts) - counts
    occurrence = np.empty(len(members), np.int64)
    occurrence[by_unit] = np.arange(len(members)) - np.repeat(first, counts)
    offsets = generator.random(len(counts))
    return members[np.argsort((occurrence + offsets[index]) / counts[index], kind="stable")]


def plan_sorted(lengths: np.ndarray, batch_size: int) -> list[Batch]:
    """Return batches of all positions in order of length, for prediction.

    Sorted rows need the least padding; nothing is shuffled.
    """
    order = np.argsort(lengths, kind="stable")
    batches = []
    for start in range(0, len(order), batch_size):
        positions = order[start : start + batch_size]
        longest = int(lengths[positions].max())
        batches.append(Batch(positions, -(-longest // WIDTH_MULTIPLE) * WIDTH_MULTIPLE))
    return batches


def padding_share(lengths: np.ndarray, batches: Sequence[Batch]) -> float:
    """Return the share of a plan's tokens that are padding, 0 to 1."""
    tokens = sum(len(batch.positions) * batch.width for batch in batches)
    return 1 - int(lengths.sum()) / max(1, tokens)


class Rows(Protocol):
    """The model inputs of a split's rows, batch by batch.

    `arrays` returns them complete. Training may build them in two steps, so that the expensive one
    runs as TensorFlow ops, ahead of the model and on many threads: Python supplies `raw_arrays`,
    and `finish` computes the inputs from them.

    Attributes:
        uniform: whether batches of equally many rows have the same shapes, whatever their width.
        pad_id: the token id that fills up short rows.
        parallel_batches: batches that `finish` works on in parallel; 0: there is no second step.
    """

    uniform: bool
    pad_id: int
    parallel_batches: int

    def arrays(self, batch: Batch) -> dict[str, np.ndarray]:
        """Return the inputs by name, each [B, ...]."""

    def spec(self, rows: int | None, width: int | None) -> dict[str, tf.TensorSpec]:
        """Return the shapes and types of `arrays` for B rows of some width.

        Args:
            rows: B, or None if it varies.
            width: tokens of each row, or None if it varies.
        """

    def raw_arrays(self, batch: Batch) -> dict[str, np.ndarray]:
        """Return the arrays that `finish` takes, by name."""

    def raw_spec(self, rows: int | None, width: int | None) -> dict[str, tf.TensorSpec]:
        """Return the shapes and types of `raw_arrays`; the arguments are those of `spec`."""

    def finish(self, raw: Any, targets: tf.Tensor) -> Any:
        """Compute (inputs, targets) from `raw_arrays`, as tensors, and targets [B, ...]."""


class PythonRows:
    """Base of `Rows` that build their inputs in one step, in Python."""

    pad_id = 0
    parallel_batches = 0

    def raw_arrays(self, batch: Batch) -> dict[str, np.ndarray]:
        """Return the inputs: there is no second step."""
        return self.arrays(batch)

    def raw_spec(self, rows: int | None, width: int | None) -> dict[str, tf.TensorSpec]:
        """Return the shapes and types of the inputs."""
        return self.spec(rows, width)

    def finish(self, raw: Any, targets: tf.Tensor) -> Any:
        """Return both arguments unchanged."""
        return raw, targets


@dataclass(frozen=True)
class Tokens(PythonRows):
    """Token ids of a split's rows: `{token_ids, padding_mask, segment_ids}`."""

    split: Dataset
    pad_id: int = 0
    uniform = False

    def arrays(self, batch: Batch) -> dict[str, np.ndarray]:
        """Return the inputs, each int32 [B, width]."""
        shape = (len(batch.positions), batch.width)
        tokens, mask = np.full(shape, self.pad_id, np.int32), np.zeros(shape, np.int32)
        segments = np.zeros(shape, np.int32)
        for row, position in enumerate(batch.positions):
            ids, segment = self.split.prepared.tokens(int(self.split.examples[position]))
            tokens[row, : len(ids)] = ids
            segments[row, : len(ids)] = segment
            mask[row, : len(ids)] = 1
        return {"token_ids": tokens, "padding_mask": mask, "segment_ids": segments}

    def spec(self, rows: int | None, width: int | None) -> dict[str, tf.TensorSpec]:
        """Return the shapes and types of `arrays`."""
        ids = tf.TensorSpec([rows, width], tf.int32)
        return {"token_ids": ids, "padding_mask": ids, "segment_ids": ids}


class BatchTargets(Protocol):
    """The targets of a split's rows and their weights in the loss, batch by batch."""

    def arrays(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Return the targets [B, ...] and float32 weights, [B] or [B, width], of a batch."""

    def spec(self, rows: int | None, width: int | None) -> tuple[tf.TensorSpec, tf.TensorSpec]:
        """Return the shapes and types of `arrays`; the arguments are those of `Rows.spec`."""


@dataclass(frozen=True)
class RowTargets:
    """A target and a weight for each row (a `BatchTargets`).

    Attributes:
        targets: [N, ...].
        weights: float32 [N].
    """

    targets: np.ndarray
    weights: np.ndarray

    def arrays(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Return targets [B, ...] and weights [B]."""
        return self.targets[batch.positions], self.weights[batch.positions]

    def spec(self, rows: int | None, width: int | None) -> tuple[tf.TensorSpec, tf.TensorSpec]:
        """Return the shapes and types of `arrays`."""
        return (
            tf.TensorSpec([rows, *self.targets.shape[1:]], self.targets.dtype),
            tf.TensorSpec([rows], tf.float32),
        )


@dataclass(frozen=True)
class TokenTargets:
    """A target for each token, or none: -1 (a `BatchTargets`).

    Attributes:
        targets: of the tokens of each row, int32.
    """

    targets: Ragged

    def arrays(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Return targets, int32 [B, width], and weights, 1 where there is a target, [B, width]."""
        shape = (len(batch.positions), batch.width)
        values, (indices, rows) = (
            np.full(shape, -1, np.int32),
            self.targets.indices(batch.positions),
        )
        columns = indices - self.targets.starts[batch.positions][rows]
        values[rows, columns] = self.targets.values[indices]
        return np.maximum(values, 0), (values >= 0).astype(np.float32)

    def spec(self, rows: int | None, width: int | None) -> tuple[tf.TensorSpec, tf.TensorSpec]:
        """Return the shapes and types of `arrays`."""
        return tf.TensorSpec([rows, width], tf.int32), tf.TensorSpec([rows, width], tf.float32)


def targets_of(targets: Any, weights: np.ndarray | None = None) -> BatchTargets:
    """Return targets batch by batch.

    Args:
        targets: of the rows, [N, ...], or of their tokens (`Ragged`).
        weights: of the rows, [N]; None: all are 1. Tokens have none.
    """
    if isinstance(targets, Ragged):
        return TokenTargets(targets)
    ones = np.ones(len(targets), np.float32)
    return RowTargets(targets, ones if weights is None else weights.astype(np.float32))


@dataclass(frozen=True)
class Sharding:
    """How each batch is sharded: replica r takes the r-th part, and this worker reads its own.

    Attributes:
        replicas: indices of this worker's replicas, in order; each gets a separate element.
        num_replicas: number of replicas over all workers.
    """

    replicas: Sequence[int] = (0,)
    num_replicas: int = 1

    def shards(self, batch: Batch) -> Iterator[Batch]:
        """Yield this worker's parts of a batch; their sizes may differ, and may be 0."""
        parts = np.array_split(batch.positions, self.num_replicas)
        for replica in self.replicas:
            yield replace(batch, positions=parts[replica], replica=replica)


def dataset(
    rows: Rows,
    targets: BatchTargets,
    batches: Iterable[Batch],
    sharding: Sharding | None = None,
    shape: tuple[int | None, int | None] = (None, None),
) -> tf.data.Dataset:
    """Return batches as a `tf.data.Dataset` of (inputs, targets, weights), prefetched.

    Args:
        rows: the inputs.
        targets: of all rows of the split, with their weights.
        batches: iterated once for each pass over the dataset.
        sharding: the parts of each batch to read; default: the complete batch.
        shape: (rows, width) of all elements where XLA needs static shapes (TPU). Smaller batches
            are filled up with rows of weight 0, and the other weights are scaled so that the mean
            is unchanged.
    """
    static_rows = shape[0]
    spec = (rows.raw_spec(*shape), *targets.spec(*shape))
    source = _Source(rows, targets, batches, sharding or Sharding(), static_rows, spec)
    # TensorFlow keeps each Python function of a graph, and all that it refers to, alive until the
    # process ends (`ops.script_ops`). So the generator refers to the source weakly; the dataset
    # owns the source, and an iterator owns its dataset.
    source_ref = weakref.ref(source)
    # Nothing here is tunable, and the autotuner's thread delays the end of an iterator by a minute.
    options = tf.data.Options()
    options.autotune.enabled = False
    if rows.uniform:
        # Fetching an element from Python costs more than a small training step: fetch many at once.
        stacked_spec = tree.map_structure(lambda s: tf.TensorSpec([None, *s.shape], s.dtype), spec)
        generated = tf.data.Dataset.from_generator(
            lambda: _stack(iter(source_ref())), output_signature=stacked_spec
        )
        result = generated.prefetch(2).unbatch().prefetch(4)
    else:
        generated = tf.data.Dataset.from_generator(
            lambda: iter(source_ref()), output_signature=spec
        )
        result = generated.prefetch(4)
    generated.owned_source = source
    if rows.parallel_batches:
        result = result.map(
            lambda raw, y, weight: (*rows.finish(raw, y), weight),
            num_parallel_calls=rows.parallel_batches,
            # In the order of the plan, which a resumed run repeats.
            deterministic=True,
        ).prefetch(rows.parallel_batches)
    return result.with_options(options)


@dataclass(frozen=True)
class _Source:
    """The generator behind `dataset`: yields one (inputs, targets, weights) at a time.

    If `static_rows` is set, each element is padded to that many rows and to the shapes of `spec`.
    """

    rows: Rows
    targets: BatchTargets
    batches: Iterable[Batch]
    sharding: Sharding
    static_rows: int | None
    spec: tuple[dict[str, tf.TensorSpec], tf.TensorSpec, tf.TensorSpec]

    def __iter__(self) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]]:
        for batch in self.batches:
            for part in self.sharding.shards(batch):
                element = (self.rows.raw_arrays(part), *self.targets.arrays(part))
                if self.static_rows is None:
                    yield element
                else:
                    # Rows of a replica's part, on average.
                    share = len(batch.positions) / self.sharding.num_replicas
                    factor = self.static_rows / share
                    yield _pad_to_shape(
                        element, self.rows.pad_id, self.spec, self.static_rows, factor
                    )


def _stack(elements: Iterator[Any]) -> Iterator[Any]:
    """Stack up to `STACK_SIZE` consecutive elements of equal shapes into one."""

    def shapes(element: Any) -> list[tuple[int, ...]]:
        return [value.shape for value in tree.flatten(element)]

    group: list[Any] = []
    for element in elements:
        if group and (len(group) == STACK_SIZE or shapes(element) != shapes(group[0])):
            yield tree.map_structure(lambda *values: np.stack(values), *group)
            group = []
        group.append(element)
    if group:
        yield tree.map_structure(lambda *values: np.stack(values), *group)


def _pad_to_shape(
    element: tuple[dict[str, np.ndarray], np.ndarray, np.ndarray],
    pad_id: int,
    spec: tuple[dict[str, tf.TensorSpec], tf.TensorSpec, tf.TensorSpec],
    static_rows: int,
    factor: float,
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Pad an element to `static_rows` rows and the shapes of `spec`, and scale its weights.

    Args:
        element: (inputs, targets, weights).
        pad_id: fills up `token_ids`; everything else is filled with 0.
        spec: static shapes of the element.
        static_rows: rows of the result.
        factor: multiplies the weights, so that the mean over the padded rows stays the same.
    """
    inputs, targets, weights = element
    padded = {}
    for name, value in inputs.items():
        paddings = _paddings(value, spec[0][name])
        if value.dtype == object:  # encoded images: repeat the last one, since 0 cannot be decoded
            padded[name] = np.pad(value, paddings, mode="edge")
        else:
            padded[name] = np.pad(
                value, paddings, constant_values=pad_id if name == "token_ids" else 0
            )
    # Attention over a row of padding alone is a softmax of nothing. Unmask one token; the weight of
    # the row is 0.
    if "padding_mask" in padded:
        padded["padding_mask"][len(weights) :, 0] = 1
    return (
        padded,
        np.pad(targets, _paddings(targets, spec[1])),
        np.pad(weights * np.float32(factor), _paddings(weights, spec[2])),
    )


def _paddings(value: np.ndarray, spec: tf.TensorSpec) -> list[tuple[int, int]]:
    """Return how much an array lacks at the end of each axis."""
    return [(0, target - size) for size, target in zip(value.shape, spec.shape, strict=True)]
