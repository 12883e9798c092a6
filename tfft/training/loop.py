"""The loop over the steps of a training, from a state to the end of the schedule.

It calls the train function of the model (`model.train_step`) and, between the steps, the
callbacks. A phase of the schedule begins with a dry run at the largest batch (`dry_run`), which
shows mistakes of shape and memory in seconds and changes nothing.
"""

from functools import partial
from typing import Literal

import keras

from tfft.config import TrainConfig
from tfft.data import Datasets
from tfft.distribute import strategies
from tfft.model import Model, masks
from tfft.run import Run
from tfft.training import best_checkpoint, cache_policy, callbacks, dry_run, optimizers
from tfft.training.batch_plan import BatchPlan
from tfft.training.checkpoints import Checkpoints, TrainingState
from tfft.training.input_pipeline import InputPipeline
from tfft.training.phases import TrainingSchedule
from tfft.training.progress import History, Progress
from tfft.utils import console
from tfft.utils.errors import Interrupted, UserError

LOG_EVERY = 10  # steps between two entries of metrics.jsonl, at least


def fit(
    run: Run,
    data: Datasets,
    plan: BatchPlan,
    schedule: TrainingSchedule,
    state: TrainingState,
    checkpoints: Checkpoints,
    epochs: int | None = None,
) -> None:
    """Train from `state` to the end of the plan, phase by phase of the schedule.

    Args:
        epochs: stop after this many of the plan's epochs; default: after all.

    Raises:
        UserError: the memory does not suffice, or the loss is not finite.
        Interrupted: a signal or a file asked for it, or `epochs` are over; the state is saved.
    """
    if run.config.train.soup and (data.validation is None or strategies.workers().count > 1):
        raise UserError("train.soup: needs a validation split, and one worker")
    pipeline = InputPipeline(run, data, plan)
    if state.step < plan.total and not state.stopped:
        _train(run, pipeline, schedule, state, checkpoints, epochs)
    # Also where nothing is left to train: a killed run may lack its last weights.
    best_checkpoint.finish(run, pipeline, state)


def _train(
    run: Run,
    pipeline: InputPipeline,
    schedule: TrainingSchedule,
    state: TrainingState,
    checkpoints: Checkpoints,
    epochs: int | None,
) -> None:
    model, plan = run.model, pipeline.plan
    last_step = epochs * plan.per_epoch if epochs is not None else plan.total
    # Only where `epochs` is below the plan: `fit` does not come here after the last step.
    if state.step >= last_step:
        raise Interrupted(f"{run.workdir}: {state.step:,} of {plan.total:,} steps are trained")
    if state.step:
        console.log(f"resuming at step {state.step:,} of {plan.total:,}")
    if state.best is None and strategies.workers().is_chief:
        run.save()  # best/ is whole from here on; a resumed run's may be better than now
    sum_over_workers = partial(strategies.sum_over_workers, model.distribute_strategy)
    with callbacks.Interrupt(
        state, checkpoints, run.workdir, sum_over_workers, last_step
    ) as interrupt:
        ordered = [*_callbacks(run, pipeline, state, checkpoints), interrupt]
        try:
            _run_phases(
                run, pipeline, schedule, state, keras.callbacks.CallbackList(ordered, model=model)
            )
        finally:
            # An error or an interruption must not lose a checkpoint that is being written.
            checkpoints.wait()
        if interrupt.stop_requested and state.step < plan.total and not state.stopped:
            raise Interrupted(
                f"interrupted at step {state.step:,} of {plan.total:,}, which is saved; the same "
                f"command with --workdir={run.workdir} resumes it"
            )


def _run_phases(
    run: Run,
    pipeline: InputPipeline,
    schedule: TrainingSchedule,
    state: TrainingState,
    callback_list: keras.callbacks.CallbackList,
) -> None:
    model, plan = run.model, pipeline.plan
    # A model that stopped early in an earlier `fit` would not begin.
    model.stop_training = False
    callback_list.on_train_begin()
    # A run that resumes within an epoch has begun it before.
    if state.step % plan.per_epoch == 0:
        callback_list.on_epoch_begin(state.step // plan.per_epoch)
    while state.step < plan.total and not model.stop_training:
        _enter_phase(run, pipeline, schedule, state.step)
        _run_steps(model, pipeline, schedule.until(state.step), state, callback_list)
    callback_list.on_train_end()


def _run_steps(
    model: Model,
    pipeline: InputPipeline,
    end: int,
    state: TrainingState,
    callback_list: keras.callbacks.CallbackList,
) -> None:
    """Train to step `end`, with one mask."""
    plan, train = pipeline.plan, pipeline.train
    # The one that the dry run has traced.
    train_function = model.make_train_function()
    iterator = pipeline.after(state.step)
    while state.step < end and not model.stop_training:
        callback_list.on_train_batch_begin(state.step)
        # Never past the phase: the next one has another mask and another trace.
        steps = min(_steps_at_once(model, plan, train, state.step), end - state.step)
        with dry_run.memory_errors(pipeline, state.step):
            logs = train_function(iterator, steps)
        state.step += model.report.steps
        # Keras counts batches from 0. One call may have run several steps.
        callback_list.on_train_batch_end(state.step - 1, logs)
        if state.step % plan.per_epoch == 0:
            epoch = state.step // plan.per_epoch
            callback_list.on_epoch_end(epoch - 1, logs)
            if state.step < plan.total and not model.stop_training:
                callback_list.on_epoch_begin(epoch)


def _enter_phase(run: Run, pipeline: InputPipeline, schedule: TrainingSchedule, step: int) -> None:
    """Set the mask, the optimizer and the start of the forward pass for the steps from `step`."""
    model, mask = run.model, schedule.at(step).mask
    # 1. What is trainable, and at which rates.
    masks.set_trainable(model, mask)
    optimizers.enter(model.optimizer, schedule, step)
    if len(schedule.phases) > 1:
        trainable = masks.parameters(mask)[1]
        console.log(f"from step {step + 1:,} on {trainable:,} parameters are trainable")
    # 2. Back to the model's inputs: the cache of the last phase ends at another layer.
    pipeline.read_rows()
    model.configure(upper_part=None)
    model.test_function = None  # regularisation losses of layers depend on the mask
    cache_policy.apply(run, pipeline, schedule, step)
    # 3. Trace, with all of the above settled.
    dry_run.prepare(run, pipeline)


def _steps_at_once(model: Model, plan: BatchPlan, train: TrainConfig, step: int) -> int:
    """Return the steps to run before the next log, validation, checkpoint or profile mark."""
    at_once = train.steps_per_execution
    if at_once == "auto":
        at_once = _short_steps(model)
    intervals = [
        _log_interval(at_once),
        plan.per_epoch,
        plan.total,
        train.validate_every.steps(plan.per_epoch, plan.total),
        train.checkpoint.every.steps(plan.per_epoch, plan.total),
    ]
    # Callbacks act on multiples of their interval, so a call must end on each of them.
    until_due = [max(1, interval) - step % max(1, interval) for interval in intervals]
    for profiled in (train.profile[0] - 1, train.profile[1]) if train.profile else ():
        if profiled > step:
            until_due.append(profiled - step)
    return min(at_once, *until_due)


def _short_steps(model: Model) -> int:
    """Return the steps of a call for `auto`: 1, and more above cached features.

    There a step takes less time than what Python does between two calls. A multiple of LOG_EVERY or
    a divisor of it.
    """
    upper_part = model.options.upper_part
    if upper_part is None:
        return 1
    vectors = all(len(tensor.shape) == 2 for tensor in upper_part.inputs)
    return 5 * LOG_EVERY if vectors else LOG_EVERY


def _log_interval(at_once: int | Literal["auto"]) -> int:
    """Return the steps between two entries of metrics.jsonl: a multiple of `at_once`."""
    at_once = 1 if at_once == "auto" else at_once
    # Entries then fall on ends of calls and cost no shorter call.
    return -(-LOG_EVERY // at_once) * at_once


def _callbacks(
    run: Run, pipeline: InputPipeline, state: TrainingState, checkpoints: Checkpoints
) -> list[keras.callbacks.Callback]:
    """Return the callbacks in their order: the guard first, saving after what changes the state."""
    train, plan = pipeline.train, pipeline.plan
    is_chief = strategies.workers().is_chief
    log_interval = _log_interval(train.steps_per_execution)
    history = History(
        state, run.workdir / "metrics.jsonl" if is_chief else None, log_interval, plan.per_epoch
    )
    ordered = [
        # First, since it raises before anything is logged or saved.
        callbacks.NonFinite(state, train.skip_non_finite, pipeline.rows),
        Progress(state, plan.per_epoch, plan.total, train.batch_size, train.metric),
        history,
    ]
    if pipeline.data.validation is not None:
        steps = train.validate_every.steps(plan.per_epoch, plan.total)
        ordered.append(best_checkpoint.Validate(run, pipeline, state, history, steps))
    interval = train.checkpoint.every
    steps = interval.steps(plan.per_epoch, plan.total)
    # After the validation, so that a checkpoint holds the best value so far.
    ordered.append(callbacks.Save(state, checkpoints, steps, interval.seconds, plan.total))
    if is_chief and train.profile:
        ordered.append(callbacks.Profile(state, run.workdir / "profile", *train.profile))
    if is_chief and train.tensorboard:
        ordered += callbacks.tensorboard(run.workdir / "tensorboard", log_interval)
    return ordered
