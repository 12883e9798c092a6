"""The loop over the steps of a training, from a state to the end of the plan.

It calls the train function of the model (`model.step`) and, between the steps, the callbacks.
Before the first step one is rehearsed at the largest batch, which shows mistakes of shape and
memory in seconds and changes nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfft import callbacks, distribute, evaluate, log, memory, optim
from tfft.checkpoints import Checkpoints, State
from tfft.config import Config, TrainConfig
from tfft.data import Datasets, batches
from tfft.errors import Interrupted, UserError
from tfft.model import Model
from tfft.run import Run

LOG_EVERY = 10  # steps between two entries of metrics.jsonl, at least

# What XLA says of a model that it cannot compile.
_NOT_COMPILED = (
    tf.errors.InvalidArgumentError,
    tf.errors.UnimplementedError,
    tf.errors.InternalError,
    tf.errors.NotFoundError,
)


@dataclass(frozen=True)
class Plan:
    """The batches of a training.

    Attributes:
        buckets: the widths that batches are padded to.
        per_epoch: steps of an epoch; `total` of the whole training.
    """

    buckets: tuple[int, ...]
    per_epoch: int
    total: int

    @classmethod
    def make(cls, config: Config, data: Datasets, static: bool = False) -> "Plan":
        """Choose the widths for the lengths that there are, and say what they cost.

        `static`: one width, the largest, as a TPU wants it.
        """
        train = config.train
        buckets = batches.widths(data.train.lengths, 1 if static else train.buckets)
        first = batches.plan(data.train.lengths, train.batch_size, buckets, train.seed, 0)
        share = batches.padding_share(data.train.lengths, first)
        log.say(
            f"batches: {len(first):,} an epoch, widths {', '.join(map(str, buckets))}, "
            f"{share:.1%} padding"
        )
        return cls(buckets, len(first), len(first) * train.epochs)

    def epoch(self, data: Datasets, train: TrainConfig, epoch: int) -> list[batches.Batch]:
        """The batches of an epoch, in order."""
        lengths = data.train.lengths
        return batches.plan(lengths, train.batch_size, self.buckets, train.seed, epoch)

    def after(self, data: Datasets, train: TrainConfig, step: int) -> Iterator[batches.Batch]:
        """All batches from a step on."""
        for epoch in range(step // self.per_epoch, train.epochs):
            skipped = step % self.per_epoch if epoch == step // self.per_epoch else 0
            yield from self.epoch(data, train, epoch)[skipped:]


def fit(result: Run, data: Datasets, plan: Plan, state: State, keep: Checkpoints) -> None:
    """Train from `state` to the end of the plan.

    Raises:
        UserError: the memory does not suffice, or the loss is not finite.
        Interrupted: a signal or a file asked for it; the state is saved.
    """
    if state.step >= plan.total or state.stopped:
        return
    if state.step:
        log.say(f"resuming at step {state.step:,} of {plan.total:,}")
    model, first = result.model, distribute.workers().first
    if state.best is None and first:
        result.save()  # best/ is whole from here on; a resumed run's may be better than now
    feed = Feed(result, data, plan)
    prepare(result, feed)
    together = partial(distribute.sum_over_workers, model.distribute_strategy)
    with callbacks.Interrupt(state, keep, result.workdir, together) as interrupt:
        watchers = _watchers(result, feed, state, keep)
        try:
            every = keras.callbacks.CallbackList([*watchers, interrupt], model=model)
            _run(model, feed, state, every)
        finally:
            keep.wait()
        if interrupt.asked and state.step < plan.total and not state.stopped:
            raise Interrupted(
                f"interrupted at step {state.step:,} of {plan.total:,}, which is saved; the same "
                f"command with --workdir={result.workdir} goes on"
            )
        if state.best is None and first:  # nothing was validated: the last weights are the best
            with optim.averaged(model):
                result.save_weights()
        together(np.zeros(1, np.int32))  # best/ is written when the other workers read it


class Feed:
    """The batches of a run as the strategy wants them.

    Attributes:
        replicas: all replicas of the run.
    """

    def __init__(self, result: Run, data: Datasets, plan: Plan):
        self.data, self.plan, self._result = data, plan, result
        self.train = result.config.train
        self._strategy = result.model.distribute_strategy
        self.replicas = self._strategy.num_replicas_in_sync
        self._weights = result.task.sample_weights(
            result.config.task, data.labels, data.train.labels
        )

    def after(self, step: int) -> Any:
        """An iterator over the batches from a step on."""
        return iter(self._distributed(lambda: self.plan.after(self.data, self.train, step)))

    def widest(self) -> tuple[batches.Batch, Any]:
        """The batch that needs the most memory, and an iterator that gives it alone."""
        every = self.plan.epoch(self.data, self.train, 0)
        chosen = max(every, key=lambda batch: (len(batch.positions) * batch.width, batch.width))
        return chosen, iter(self._distributed(lambda: iter([chosen])))

    def rows(self, step: int) -> str:
        """Names the rows of the batch that a step took."""
        epoch, at = divmod(step - 1, self.plan.per_epoch)
        positions = self.plan.epoch(self.data, self.train, epoch)[at].positions
        rows = sorted(int(self.data.train.rows[p]) + 1 for p in positions)
        more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
        return f" (the batch: rows {', '.join(map(str, rows[:8]))}{more} of the training data)"

    def _distributed(self, made: Any) -> Any:
        pad_id = self._result.inputs.pad_id
        static = isinstance(self._strategy, tf.distribute.TPUStrategy)
        shape = self.static_shape() if static else (None, None)

        def of(pieces: batches.Pieces) -> tf.data.Dataset:
            source = _Again(made)
            return batches.dataset(self.data.train, source, pad_id, self._weights, pieces, shape)

        if self.replicas == 1:
            return of(batches.Pieces())

        def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
            local = self.replicas // context.num_input_pipelines
            first = context.input_pipeline_id * local
            return of(batches.Pieces(range(first, first + local), self.replicas))

        return self._strategy.distribute_datasets_from_function(of_worker)

    def static_shape(self) -> tuple[int, int]:
        """Rows and width of what a replica gets, where every element must have the same."""
        return -(-self.train.batch_size // self.replicas), self.plan.buckets[-1]


class _Again:
    """Calls `made` for each iteration."""

    def __init__(self, made: Any):
        self._made = made

    def __iter__(self) -> Iterator[batches.Batch]:
        return self._made()


def _run(model: Model, feed: Feed, state: State, watchers: keras.callbacks.CallbackList) -> None:
    plan, train = feed.plan, feed.train
    function = model.make_train_function()
    iterator = feed.after(state.step)
    model.stop_training = False
    watchers.on_train_begin()
    if state.step % plan.per_epoch == 0:
        watchers.on_epoch_begin(state.step // plan.per_epoch)
    while state.step < plan.total and not model.stop_training:
        watchers.on_train_batch_begin(state.step)
        with _memory_told(feed, state.step):
            logs = function(iterator, _steps_at_once(plan, train, state.step))
        state.step += model.report.steps
        watchers.on_train_batch_end(state.step - 1, logs)
        if state.step % plan.per_epoch == 0:
            epoch = state.step // plan.per_epoch
            watchers.on_epoch_end(epoch - 1, logs)
            if state.step < plan.total and not model.stop_training:
                watchers.on_epoch_begin(epoch)
    watchers.on_train_end()


def _steps_at_once(plan: Plan, train: TrainConfig, step: int) -> int:
    """At most `steps_per_execution`, and none beyond where something is due."""
    every = [
        _log_every(train),
        plan.per_epoch,
        plan.total,
        train.validate_every.steps(plan.per_epoch, plan.total),
        train.checkpoint.every.steps(plan.per_epoch, plan.total),
    ]
    until = [max(1, n) - step % max(1, n) for n in every]
    for mark in (train.profile[0] - 1, train.profile[1]) if train.profile else ():
        if mark > step:
            until.append(mark - step)
    return min(train.steps_per_execution, *until)


def _log_every(train: TrainConfig) -> int:
    return -(-LOG_EVERY // train.steps_per_execution) * train.steps_per_execution


# --- before the first step ---


def prepare(result: Run, feed: Feed) -> None:
    """Rehearse a step; settle what is `auto`: XLA and the micro-batch."""
    model, train = result.model, feed.train
    automatic = distribute.accelerated() and not train.deterministic
    model.xla = automatic if train.jit == "auto" else train.jit
    local = -(-train.batch_size // feed.replicas)
    if train.micro_batch == "auto":
        model.micro_batch = _largest(model, feed, local)
    elif train.micro_batch is not None and train.micro_batch < local:
        model.micro_batch = train.micro_batch
    model.make_train_function(force=True)
    try:
        with _memory_told(feed, None):
            _rehearse(model, feed)
    except _NOT_COMPILED as error:
        if not model.xla or isinstance(error, tf.errors.ResourceExhaustedError):
            raise
        reason = " ".join(str(error.message).split())[:160]
        if train.jit is True:
            raise UserError(f"train.jit: XLA cannot compile this model: {reason}") from None
        log.say(f"jit: XLA cannot compile this model, going on without it: {reason}")
        model.xla = False
        model.make_train_function(force=True)
        _rehearse(model, feed)


def _rehearse(model: Model, feed: Feed) -> None:
    """One step that computes all and changes nothing: not weights, optimizer, seeds, metrics."""
    moving = {id(v) for v in model.trainable_variables}
    kept = [v for v in [*model.variables, *model.metrics_variables] if id(v) not in moving]
    before = [np.array(keras.ops.convert_to_numpy(v)) for v in kept]
    model.dry = True
    try:
        _, iterator = feed.widest()
        model.make_train_function()(iterator, 1)
    finally:
        model.dry = False
        for variable, value in zip(kept, before, strict=True):
            variable.assign(value)


def _largest(model: Model, feed: Feed, rows: int) -> int | None:
    """The largest micro-batch that fits, None where that is all of a replica's rows."""

    def runs(size: int) -> bool:
        model.micro_batch = size
        try:
            _rehearse(model, feed)
        except tf.errors.ResourceExhaustedError:
            return False
        return True

    model.micro_batch = rows
    model.make_train_function(force=True)
    workers = distribute.workers()
    if not distribute.accelerated():
        size = memory.by_measuring(runs, rows)
    elif workers.count == 1:
        size = memory.by_trying(runs, rows)
    else:  # the one that runs out of memory would leave the others waiting
        raise UserError(
            "train.micro_batch: auto tries sizes out, on GPUs of one worker only; run it with one "
            "worker and give the number that it finds"
        )
    sizes = np.zeros(workers.count, np.int32)
    sizes[workers.index] = size
    size = int(distribute.sum_over_workers(model.distribute_strategy, sizes).min())
    log.say(f"micro-batch: {size} of {rows} rows a device fit in its memory")
    return size if size < rows else None


# --- what can go wrong on the way ---


@contextmanager
def _memory_told(feed: Feed, step: int | None) -> Iterator[None]:
    """Turn "out of memory" into a line with the largest size that worked."""
    try:
        yield
    except tf.errors.ResourceExhaustedError:
        batch = (
            feed.widest()[0] if step is None else next(feed.plan.after(feed.data, feed.train, step))
        )
        rows = -(-len(batch.positions) // feed.replicas)
        model = feed._result.model
        rows = min(rows, model.micro_batch or rows)
        # To try smaller ones takes all workers, and the others wait for this one.
        alone = distribute.workers().count == 1
        worked = _largest_that_works(model, feed, rows) if alone else "lower train.micro_batch"
        raise UserError(
            f"out of memory with {rows} rows of {batch.width} tokens at once on a device; "
            f"{worked}. The last checkpoint is kept"
        ) from None


def _largest_that_works(model: Model, feed: Feed, rows: int) -> str:
    model.micro_batch = size = rows
    model.make_train_function(force=True)
    while size > 1:
        model.micro_batch = size = size // 2
        try:
            _rehearse(model, feed)
        except tf.errors.ResourceExhaustedError:
            continue
        return f"the largest size that worked is {size}: set train.micro_batch: {size}, or auto"
    return "not even one row works: lower data.max_length, or set train.remat: true"


# --- what watches ---


def _watchers(
    result: Run, feed: Feed, state: State, keep: Checkpoints
) -> list[keras.callbacks.Callback]:
    """The callbacks in their order: guard first; save after all that changes the state."""
    train, plan, data = feed.train, feed.plan, feed.data
    first = distribute.workers().first
    path = result.workdir / "metrics.jsonl" if first else None
    history = callbacks.History(state, path, _log_every(train), plan.per_epoch)
    watchers = [
        callbacks.NonFinite(state, train.skip_non_finite, feed.rows),
        callbacks.Progress(state, plan.per_epoch, plan.total, train.batch_size),
        history,
    ]
    if data.validation is not None:
        early = train.early_stopping
        watchers.append(
            callbacks.Validate(
                state,
                history,
                partial(_validation_figures, result, data, first),
                train.metric,
                train.validate_every.steps(plan.per_epoch, plan.total),
                plan.total,
                early.patience if early else None,
                early.min_delta if early else 0.0,
            )
        )
    every = train.checkpoint.every
    watchers.append(
        callbacks.Save(
            state, keep, every.steps(plan.per_epoch, plan.total), every.seconds, plan.total
        )
    )
    if first and train.profile:
        watchers.append(callbacks.Profile(state, result.workdir / "profile", *train.profile))
    if first and train.tensorboard:
        watchers += callbacks.tensorboard(result.workdir / "tensorboard", _log_every(train))
    return watchers


@contextmanager
def _validation_figures(
    result: Run, data: Datasets, first: bool
) -> Iterator[tuple[dict[str, float], Any]]:
    """The figures, and what saves the weights that they are of: the averages, if there are."""
    split, size = data.validation, result.config.evaluate.batch_size
    with optim.averaged(result.model):
        logits = evaluate.predict(result.model, split, result.inputs, size)
        save = result.save_weights if first else (lambda: None)
        yield result.task.metrics(logits, split.labels), save
