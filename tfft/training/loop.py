"""The loop over the steps of a training, from a state to the end of the plan.

It calls the train function of the model (`model.step`) and, between the steps, the callbacks.
Before the first step one is rehearsed at the largest batch, which shows mistakes of shape and
memory in seconds and changes nothing.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tfft.config import TrainConfig
from tfft.data import Datasets, batches, model_inputs
from tfft.data.prepared import default_cache
from tfft.distribute import strategies
from tfft.evaluation import evaluate
from tfft.model import Model, masks
from tfft.run import Run
from tfft.training import callbacks, feature_cache, memory, optimizers, soup
from tfft.training.callbacks import LOWER_IS_BETTER
from tfft.training.checkpoints import Checkpoints, TrainingState
from tfft.training.input_pipeline import BatchPlan, InputPipeline
from tfft.training.phases import TrainingSchedule
from tfft.utils import console
from tfft.utils.errors import Interrupted, UserError

MUCH = 0.1  # of the model's products must be below for the cached prefix to pay
LOG_EVERY = 10  # steps between two entries of metrics.jsonl, at least

# What XLA says of a model that it cannot compile.
_NOT_COMPILED = (
    tf.errors.InvalidArgumentError,
    tf.errors.UnimplementedError,
    tf.errors.InternalError,
    tf.errors.NotFoundError,
)


def fit(
    result: Run,
    data: Datasets,
    plan: BatchPlan,
    course: TrainingSchedule,
    state: TrainingState,
    keep: Checkpoints,
    epochs: int | None = None,
) -> None:
    """Train from `state` to the end of the plan, stretch by stretch of the course.

    Args:
        epochs: stop after so many of the plan's; default: after all.

    Raises:
        UserError: the memory does not suffice, or the loss is not finite.
        Interrupted: a signal or a file asked for it, or `epochs` are over; the state is saved.
    """
    if result.config.train.soup and (data.validation is None or strategies.workers().count > 1):
        raise UserError("train.soup: needs a validation split, and one worker")
    feed = InputPipeline(result, data, plan)
    if state.step < plan.total and not state.stopped:
        _train(result, feed, course, state, keep, epochs)
    _keep_best(result, feed, state)


def _train(
    result: Run, feed: InputPipeline, course: TrainingSchedule, state: TrainingState, keep: Checkpoints, epochs: int | None
) -> None:
    model, plan = result.model, feed.plan
    until = epochs * plan.per_epoch if epochs is not None else plan.total
    if state.step >= until:
        raise Interrupted(f"{result.workdir}: {state.step:,} of {plan.total:,} steps are trained")
    if state.step:
        console.log(f"resuming at step {state.step:,} of {plan.total:,}")
    if state.best is None and strategies.workers().first:
        result.save()  # best/ is whole from here on; a resumed run's may be better than now
    together = partial(strategies.sum_over_workers, model.distribute_strategy)
    with callbacks.Interrupt(state, keep, result.workdir, together, until) as interrupt:
        watchers = _watchers(result, feed, state, keep)
        try:
            every = keras.callbacks.CallbackList([*watchers, interrupt], model=model)
            _run(result, feed, course, state, every)
        finally:
            keep.wait()
        if interrupt.asked and state.step < plan.total and not state.stopped:
            raise Interrupted(
                f"interrupted at step {state.step:,} of {plan.total:,}, which is saved; the same "
                f"command with --workdir={result.workdir} goes on"
            )


def _keep_best(result: Run, feed: InputPipeline, state: TrainingState) -> None:
    """Write the weights of `best/` that follow from the end of the training.

    Also where a run resumes at its end: it may have been killed before it had written them.
    """
    model, first = result.model, strategies.workers().first
    if state.best is None and first:  # nothing was validated: the last weights are the best
        with optimizers.averaged(model):
            result.save()
    if first and (kept := _soup(result)) is not None:
        _cook(result, feed, state, kept)
    # best/ is written when the other workers read it.
    strategies.sum_over_workers(model.distribute_strategy, np.zeros(1, np.int32))


def _run(
    result: Run, feed: InputPipeline, course: TrainingSchedule, state: TrainingState, watchers: keras.callbacks.CallbackList
) -> None:
    model, plan = result.model, feed.plan
    model.stop_training = False
    watchers.on_train_begin()
    if state.step % plan.per_epoch == 0:
        watchers.on_epoch_begin(state.step // plan.per_epoch)
    while state.step < plan.total and not model.stop_training:
        _enter(result, feed, course, state.step)
        _stretch(model, feed, course.until(state.step), state, watchers)
    watchers.on_train_end()


def _stretch(
    model: Model, feed: InputPipeline, end: int, state: TrainingState, watchers: keras.callbacks.CallbackList
) -> None:
    """Train to a step, with one mask."""
    plan, train = feed.plan, feed.train
    function = model.make_train_function()
    iterator = feed.after(state.step)
    while state.step < end and not model.stop_training:
        watchers.on_train_batch_begin(state.step)
        steps = min(_steps_at_once(model, plan, train, state.step), end - state.step)
        with _memory_told(feed, state.step):
            logs = function(iterator, steps)
        state.step += model.report.steps
        watchers.on_train_batch_end(state.step - 1, logs)
        if state.step % plan.per_epoch == 0:
            epoch = state.step // plan.per_epoch
            watchers.on_epoch_end(epoch - 1, logs)
            if state.step < plan.total and not model.stop_training:
                watchers.on_epoch_begin(epoch)


def _enter(result: Run, feed: InputPipeline, course: TrainingSchedule, step: int) -> None:
    """Let move what moves from this step on, and start above the cached prefix if there is one."""
    model, mask = result.model, course.at(step).mask
    masks.set_trainable(model, mask)
    optimizers.enter(model.optimizer, course, step)
    if len(course.phases) > 1:
        moving = masks.parameters(mask)[1]
        console.log(f"from step {step + 1:,} on {moving:,} parameters move")
    feed.read_rows()
    model.start_above(None)
    _start_above(result, feed, course, step)
    prepare(result, feed)


def _start_above(result: Run, feed: InputPipeline, course: TrainingSchedule, step: int) -> None:
    """Store what the frozen stages put out, if that is wanted and pays; says what was decided.

    Raises:
        UserError: it is wanted and cannot be.
    """
    train, model = feed.train, result.model
    if train.cache is False:
        return
    made = feature_cache.cut(model)
    reason = made if isinstance(made, str) else _not_worth(result, feed, made, course, step)
    if reason or isinstance(made, str):
        if train.cache is True:
            raise UserError(f"train.cache: {reason}")
        if not isinstance(made, str) or not reason.startswith("the lowest stage moves"):
            console.log(f"cache: off: {reason}")
        return
    size = _stored_bytes(result, feed, made)
    console.log(
        f"cache: on: what is below {made.lowest} is stored as {train.cache_type}, "
        f"{size / 2**20:,.1f} MiB"
    )
    config = result.config
    folder = default_cache(config.data.cache_dir)
    keep = partial(feature_cache.store, made, dtype=train.cache_type, folder=folder)
    # What is below the cut depends on more than its weights: the description holds what is a
    # constant in the graph (scaling, mean, epsilon).
    about = [dict(result.backbone.description), result.backbone.fingerprint, config.task.pooling]
    key = f"{config.distribute.precision} {json.dumps(about, sort_keys=True, default=str)}"
    if isinstance(feed.train_rows, model_inputs.Changed):
        drawn = f"{key} {config.augmentation.model_dump_json()} {train.seed}"
        stored = [
            keep(feed.data.train, feed.train_rows.variant(n), key=f"{drawn} {n}")
            for n in range(config.augmentation.variants or 1)
        ]
        feed.train_rows = feature_cache.CyclingCache(stored, feed.plan.per_epoch)
    else:
        feed.train_rows = keep(feed.data.train, feed.train_rows, key=key)
    if feed.data.validation is not None and feed.validation_rows is not None:
        feed.validation_rows = keep(feed.data.validation, feed.validation_rows, key=key)
    model.start_above(made.above)


def _not_worth(result: Run, feed: InputPipeline, made: feature_cache.ModelSplit, course: TrainingSchedule, step: int) -> str:
    """Why the prefix is not stored; empty where it is."""
    train = feed.train
    if strategies.workers().count > 1:
        return "each of several workers would need its own copy"
    if result.config.regularization.adversarial is not None:
        return "adversarial training changes the embeddings"
    if result.config.augmentation.any and result.config.augmentation.variants is None:
        return (
            "augmentation changes the pictures in every epoch (augmentation.variants: 8 stores 8)"
        )
    if train.cache is True:
        return ""
    if made.share < MUCH:
        return f"what is below {made.lowest} computes {made.share:.0%} of the model only"
    # Of the whole stretch, wherever a resumed run stands in it: it must decide the same.
    epochs = (course.until(step) - course.at(step).start) / feed.plan.per_epoch
    if epochs < 2:
        return f"it would be read for {epochs:.1f} epochs only"
    size = _stored_bytes(result, feed, made)
    free = feature_cache.room(default_cache(result.config.data.cache_dir))
    if size > free:
        return f"it needs {size / 2**30:,.1f} GiB of disk; {free / 2**30:,.1f} GiB may be taken"
    return ""


def _stored_bytes(result: Run, feed: InputPipeline, made: feature_cache.ModelSplit) -> int:
    variants = result.config.augmentation.variants or 1
    splits = [feed.data.train] * variants + [s for s in (feed.data.validation,) if s is not None]
    return feature_cache.size(made, splits, result.config.train.cache_type)


def _steps_at_once(model: Model, plan: BatchPlan, train: TrainConfig, step: int) -> int:
    """Steps until Python looks again; none beyond where something is due."""
    at_once = train.steps_per_execution
    if at_once == "auto":
        at_once = _short_steps(model)
    every = [
        _log_every(at_once),
        plan.per_epoch,
        plan.total,
        train.validate_every.steps(plan.per_epoch, plan.total),
        train.checkpoint.every.steps(plan.per_epoch, plan.total),
    ]
    until = [max(1, n) - step % max(1, n) for n in every]
    for mark in (train.profile[0] - 1, train.profile[1]) if train.profile else ():
        if mark > step:
            until.append(mark - step)
    return min(at_once, *until)


def _short_steps(model: Model) -> int:
    """Steps between two looks that take no longer than the looks: 1 but above a cached prefix.

    A multiple of LOG_EVERY or a divisor of it.
    """
    if model.above is None:
        return 1
    vectors = all(len(tensor.shape) == 2 for tensor in model.above.inputs)
    return 5 * LOG_EVERY if vectors else LOG_EVERY


def _log_every(at_once: int | Literal["auto"]) -> int:
    """Steps between two entries of metrics.jsonl: LOG_EVERY, or the next multiple of `at_once`."""
    at_once = 1 if at_once == "auto" else at_once
    return -(-LOG_EVERY // at_once) * at_once


# --- before the first step ---


def prepare(result: Run, feed: InputPipeline) -> None:
    """Rehearse a step; settle what is `auto`: XLA and the micro-batch."""
    model, train = result.model, feed.train
    automatic = strategies.accelerated() and not train.deterministic
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
        console.log(f"jit: XLA cannot compile this model, going on without it: {reason}")
        model.xla = False
        model.make_train_function(force=True)
        _rehearse(model, feed)


def _rehearse(model: Model, feed: InputPipeline) -> None:
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


def _fits(model: Model, feed: InputPipeline) -> bool:
    """Whether a step has the memory that it needs."""
    for _ in range(2):
        try:
            _rehearse(model, feed)
            return True
        except tf.errors.ResourceExhaustedError:
            return False
        except tf.errors.AlreadyExistsError:
            # A step that ran out of memory can leave temporary variables behind, for which
            # TensorFlow takes those of the next one of the same names.
            model.again += 1
            model.make_train_function(force=True)
    return False


def _largest(model: Model, feed: InputPipeline, rows: int) -> int | None:
    """The largest micro-batch that fits, None where that is all of a replica's rows."""

    def runs(size: int) -> bool:
        model.micro_batch = size
        return _fits(model, feed)

    model.micro_batch = rows
    model.make_train_function(force=True)
    workers = strategies.workers()
    if not strategies.accelerated():
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
    size = int(strategies.sum_over_workers(model.distribute_strategy, sizes).min())
    console.log(f"micro-batch: {size} of {rows} rows a device fit in its memory")
    return size if size < rows else None


# --- what can go wrong on the way ---


@contextmanager
def _memory_told(feed: InputPipeline, step: int | None) -> Iterator[None]:
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
        alone = strategies.workers().count == 1
        worked = _largest_that_works(model, feed, rows) if alone else "lower train.micro_batch"
        raise UserError(
            f"out of memory with {rows} rows{_of_tokens(feed, batch)} at once on a device; "
            f"{worked}. The last checkpoint is kept"
        ) from None


def _largest_that_works(model: Model, feed: InputPipeline, rows: int) -> str:
    model.micro_batch = size = rows
    model.make_train_function(force=True)
    while size > 1:
        model.micro_batch = size = size // 2
        if _fits(model, feed):
            return f"the largest size that worked is {size}: set train.micro_batch: {size}, or auto"
    smaller = {"text": "data.max_length", "image": "model.image_size"}
    lower = smaller[feed._result.config.task.modality]
    return f"not even one row works: lower {lower}, or set train.remat: true"


def _of_tokens(feed: InputPipeline, batch: batches.Batch) -> str:
    return f" of {batch.width} tokens" if feed._result.config.task.modality == "text" else ""


# --- what watches ---


def _watchers(
    result: Run, feed: InputPipeline, state: TrainingState, keep: Checkpoints
) -> list[keras.callbacks.Callback]:
    """The callbacks in their order: guard first; save after all that changes the state."""
    train, plan, data = feed.train, feed.plan, feed.data
    first = strategies.workers().first
    path = result.workdir / "metrics.jsonl" if first else None
    history = callbacks.History(state, path, _log_every(train.steps_per_execution), plan.per_epoch)
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
                partial(_validation_figures, result, feed, first),
                _soup(result) if first else None,
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
        watchers += callbacks.tensorboard(
            result.workdir / "tensorboard", _log_every(train.steps_per_execution)
        )
    return watchers


@contextmanager
def _validation_figures(
    result: Run, feed: InputPipeline, first: bool
) -> Iterator[tuple[dict[str, float], Any]]:
    """The figures, and what saves the weights that they are of: the averages, if there are."""
    with optimizers.averaged(result.model):
        save = result.save_weights if first else (lambda: None)
        yield figures(result, feed), save


def figures(result: Run, feed: InputPipeline) -> dict[str, float]:
    """The task's figures of the validation split, by name."""
    split, size = feed.data.validation, result.config.evaluate.batch_size
    logits = evaluate.predict(result.model, split, feed.validation_rows, size)
    return result.task.metrics(logits, split.labels, None)


def _soup(result: Run) -> soup.Soup | None:
    size = result.config.train.soup
    return soup.Soup(result.workdir / "soup", size, result.trained) if size else None


def _cook(result: Run, feed: InputPipeline, state: TrainingState, kept: soup.Soup) -> None:
    """Average the best weights greedily; they are the run's if that is better."""
    metric = feed.train.metric
    value = kept.cook(
        result.model, lambda: figures(result, feed)[metric], metric not in LOWER_IS_BETTER
    )
    if value is not None and callbacks.gain(metric, value, state.best) >= 0:
        result.save_weights()
        state.best = value
