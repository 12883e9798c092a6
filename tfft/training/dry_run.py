"""The dry run before each phase, the settings that are `auto`, and running out of memory.

A dry run computes a step at the largest batch and changes nothing. It shows mistakes of shape and
memory in seconds, whether XLA compiles the model, and which micro-batch fits.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import keras
import numpy as np
import tensorflow as tf

from tfft.data import batches
from tfft.distribute import strategies
from tfft.model import Model
from tfft.run import Run
from tfft.training import memory
from tfft.training.input_pipeline import InputPipeline
from tfft.utils import console
from tfft.utils.errors import UserError

# What XLA raises for a model that it cannot compile.
_NOT_COMPILED = (
    tf.errors.InvalidArgumentError,
    tf.errors.UnimplementedError,
    tf.errors.InternalError,
    tf.errors.NotFoundError,
)


def prepare(run: Run, pipeline: InputPipeline) -> None:
    """Settle XLA and the micro-batch where they are `auto`, and run a step that changes nothing.

    Raises:
        UserError: the memory does not suffice, or XLA is requested and cannot compile the model.
    """
    model, train = run.model, pipeline.train
    # On a CPU XLA is not worth its compile time.
    automatic = strategies.accelerated() and not train.deterministic
    model.configure(jit_compile=automatic if train.jit_compile == "auto" else train.jit_compile)
    rows = -(-train.batch_size // pipeline.replicas)  # of one replica, rounded up
    if train.micro_batch == "auto":
        model.configure(micro_batch=_largest_micro_batch(model, pipeline, rows))
    elif train.micro_batch is not None and train.micro_batch < rows:
        model.configure(micro_batch=train.micro_batch)
    # Traced with these options and the mask; the function stays the one of the training.
    model.make_train_function(force=True)
    try:
        with memory_errors(pipeline, None):
            _dry_step(model, pipeline)
    except _NOT_COMPILED as error:
        if not model.options.jit_compile or isinstance(error, tf.errors.ResourceExhaustedError):
            raise
        reason = " ".join(str(error.message).split())[:160]
        if train.jit_compile is True:
            raise UserError(f"train.jit_compile: XLA cannot compile this model: {reason}") from None
        console.log(f"jit: XLA cannot compile this model, continuing without it: {reason}")
        model.configure(jit_compile=False)
        _dry_step(model, pipeline)


@contextmanager
def memory_errors(pipeline: InputPipeline, step: int | None) -> Iterator[None]:
    """Turn "out of memory" into a line with the largest micro-batch that fits.

    Args:
        step: the training step that runs; None: a dry run at the largest batch.

    Raises:
        UserError: the memory did not suffice.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError:
        if step is None:
            batch = pipeline.widest()[0]
        else:
            batch = next(pipeline.plan.after(pipeline.data, pipeline.train, step))
        model = pipeline.model
        rows = -(-len(batch.positions) // pipeline.replicas)
        rows = min(rows, model.options.micro_batch or rows)
        # A smaller size is tried by all workers together, and the others wait in the failed step.
        alone = strategies.workers().count == 1
        advice = _smaller_micro_batch(model, pipeline, rows) if alone else "lower train.micro_batch"
        raise UserError(
            f"out of memory with {rows} rows{_of_tokens(pipeline, batch)} at once on a device; "
            f"{advice}. The last checkpoint is kept"
        ) from None


def _dry_step(model: Model, pipeline: InputPipeline) -> None:
    """Run a step that computes all and changes no weight, optimizer state, seed or metric."""
    # `dry_run` leaves the trainable variables alone; forward passes still advance
    # seeds, metrics and BatchNorm statistics, which are copied and restored.
    trainable = {id(v) for v in model.trainable_variables}
    others = [v for v in [*model.variables, *model.metrics_variables] if id(v) not in trainable]
    values = [np.array(keras.ops.convert_to_numpy(v)) for v in others]
    try:
        _, iterator = pipeline.widest()
        model.make_train_function()(iterator, 1, dry_run=True)
    finally:
        for variable, value in zip(others, values, strict=True):
            variable.assign(value)


def _fits(model: Model, pipeline: InputPipeline) -> bool:
    """Return whether the memory suffices for a step."""
    # Twice: the second attempt runs if the first one met leftovers of a failed step.
    for _ in range(2):
        try:
            _dry_step(model, pipeline)
            return True
        except tf.errors.ResourceExhaustedError:
            return False
        except tf.errors.AlreadyExistsError:
            # A step that ran out of memory can leave temporary variables behind, which TensorFlow
            # takes for those of the next one, as they have the same names.
            model.configure(failed_attempts=model.options.failed_attempts + 1)
    return False


def _largest_micro_batch(model: Model, pipeline: InputPipeline, rows: int) -> int | None:
    """Return the largest micro-batch that fits, None where that is all of a replica's rows."""

    def fits(size: int) -> bool:
        model.configure(micro_batch=size)
        return _fits(model, pipeline)

    # The mask of this phase may differ from the one that the last function was traced with.
    model.configure(micro_batch=rows)
    model.make_train_function(force=True)
    workers = strategies.workers()
    if not strategies.accelerated():
        size = memory.by_measuring(fits, rows)
    elif workers.count == 1:
        size = memory.by_trying(fits, rows)
    else:  # the one that runs out of memory would leave the others waiting
        raise UserError(
            "train.micro_batch: auto tries sizes on GPUs of one worker only; run it with one "
            "worker and set the number that it finds"
        )
    sizes = np.zeros(workers.count, np.int32)
    sizes[workers.index] = size
    # The smallest of all workers: they run the same steps.
    size = int(strategies.sum_over_workers(model.distribute_strategy, sizes).min())
    console.log(f"micro-batch: {size} of {rows} rows a device fit in its memory")
    # None builds a step without the loop over micro-batches.
    return size if size < rows else None


def _smaller_micro_batch(model: Model, pipeline: InputPipeline, rows: int) -> str:
    """Return the advice that follows from halving the micro-batch until it fits."""
    size = rows
    while size > 1:
        size //= 2
        model.configure(micro_batch=size)
        if _fits(model, pipeline):
            return f"the largest size that worked is {size}: set train.micro_batch: {size}, or auto"
    size = "model.image_size" if pipeline.reads == ("image",) else "model.image.image_size"
    settings = {"text": "data.max_length", "image": size}
    setting = " or ".join(settings[kind] for kind in pipeline.reads)
    return f"not even one row works: lower {setting}, or set train.remat: true"


def _of_tokens(pipeline: InputPipeline, batch: batches.Batch) -> str:
    return f" of {batch.width} tokens" if "text" in pipeline.reads else ""
