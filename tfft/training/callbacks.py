"""Callbacks between the steps of a training: the non-finite guard, saving, profiling, stopping.

They share one `checkpoints.TrainingState`, which is stored in each checkpoint.
"""

import math
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfft.training.checkpoints import Checkpoints, TrainingState
from tfft.utils import console, energy
from tfft.utils.errors import UserError, require


class NonFinite(keras.callbacks.Callback):
    """Guard that stops the training at a non-finite loss or gradient, before anything is saved.

    The train step has skipped the update of such a batch, so the weights are still good.

    Args:
        state: counts the skipped batches, over all starts of the run.
        max_skipped: number of such batches (`train.skip_non_finite`) that only give a warning.
        describe_rows: returns text that names the rows of the batch of a step.
    """

    def __init__(self, state: TrainingState, max_skipped: int, describe_rows: Callable[[int], str]):
        super().__init__()
        self._state, self._max_skipped = state, max_skipped
        self._describe_rows = describe_rows

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Count skipped batches; raise UserError if there are more than `max_skipped`."""
        report = self.model.report
        if not report.skipped:
            return
        state = self._state
        state.skipped += report.skipped
        # One call may run several steps, and then only their sum is known.
        single = report.steps == 1
        steps = (
            f"step {state.step}"
            if single
            else f"one of the {report.steps} steps up to {state.step}"
        )
        value = report.loss if single else "not finite"
        problem = (
            "a gradient is not finite"
            if math.isfinite(report.loss) and single
            else (f"the loss is {value}")
        )
        rows = self._describe_rows(state.step) if single else ""
        # Raised before `Save` runs, which comes later in the list: no checkpoint of this step.
        if state.skipped > self._max_skipped:
            raise UserError(
                f"{problem} at {steps}; lower optimizer.learning_rate, set distribute.precision: "
                "float32, or skip such batches with train.skip_non_finite. The last "
                f"checkpoint is kept{rows}"
            )
        count = f"{state.skipped} of at most {self._max_skipped}"
        console.log(f"warning: {problem} at {steps}: skipped, {count}{rows}")


class Save(keras.callbacks.Callback):
    """Callback that writes checkpoints at intervals and at the end, and meters time and energy.

    Args:
        state: the state that is saved; gets the time and energy of each step.
        checkpoints: where it is saved.
        interval: steps between two checkpoints.
        seconds: wall-clock time between two checkpoints; None: steps alone count.
        total: steps of the whole training.
    """

    def __init__(
        self,
        state: TrainingState,
        checkpoints: Checkpoints,
        interval: int,
        seconds: float | None,
        total: int,
    ):
        super().__init__()
        self._state, self._checkpoints = state, checkpoints
        self._interval, self._seconds, self._total = max(1, interval), seconds, total
        # Monotonic: the clock of the day may be set while a run trains.
        self._last_save_time = self._last_step_time = time.monotonic()
        self._meter = energy.Meter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Save if it is due."""
        state = self._state
        self._record_usage()
        # Only the chief writes, so the clocks of other workers do not matter.
        due = self._seconds is not None and time.monotonic() - self._last_save_time >= self._seconds
        if due or state.step % self._interval == 0 or state.step == self._total or state.stopped:
            self._last_save_time = time.monotonic()
            self._checkpoints.save(self.model, state)

    def _record_usage(self) -> None:
        """Add the time and energy since the last step to the state."""
        state, now = self._state, time.monotonic()
        elapsed, self._last_step_time = now - self._last_step_time, now
        # In the state, so that the sums continue over restarts.
        state.seconds = round(state.seconds + elapsed, 3)
        joules = self._meter.joules()
        if joules is not None:
            state.joules = round(state.joules + joules, 3)
            state.metered = round(state.metered + elapsed, 3)
            state.meters = self._meter.names


class Profile(keras.callbacks.Callback):
    """Callback that writes a TensorBoard profile of steps `first` to `last`, counted from 1."""

    def __init__(self, state: TrainingState, folder: Path, first: int, last: int):
        super().__init__()
        self._state, self._folder = state, folder
        self._first, self._last = first, last
        self._running = False

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Start the profiler before step `first`."""
        # `_steps_at_once` ends a call before `first`, so the step is never jumped over.
        if not self._running and self._state.step + 1 == self._first:
            tf.profiler.experimental.start(str(self._folder))
            self._running = True

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Stop the profiler after step `last`."""
        if self._running and self._state.step >= self._last:
            self._stop()

    def on_train_end(self, logs: Any = None) -> None:
        """Stop the profiler if the training ends between the two steps."""
        if self._running:
            self._stop()

    def _stop(self) -> None:
        tf.profiler.experimental.stop()
        self._running = False
        console.log(f"profile: {self._folder}; tensorboard --logdir={self._folder} shows it")


class Interrupt(keras.callbacks.Callback):
    """Callback and context manager that saves and stops the training on request.

    SIGINT, SIGTERM and a file `STOP` in the run directory save and stop; a file `SAVE` saves and
    the training continues. All workers act on a request to any of them, at the same step. It must
    be the last callback, so that it saves the state that the others have updated.

    Args:
        state: the state that is saved.
        checkpoints: where it is saved.
        folder: the run directory; the request files in it are deleted when they are read.
        sum_over_workers: sums an array over the workers.
        last_step: the step after which to stop as on a request; None: never.

    Attributes:
        stop_requested: whether a stop was requested.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)
    POLL_SECONDS = 1.0  # between two looks for the files

    def __init__(
        self,
        state: TrainingState,
        checkpoints: Checkpoints,
        folder: Path,
        sum_over_workers: Callable[[np.ndarray], np.ndarray],
        last_step: int | None = None,
    ):
        super().__init__()
        self._state, self._checkpoints, self._folder = state, checkpoints, folder
        self._sum_over_workers, self._last_step = sum_over_workers, last_step
        self._last_poll = time.monotonic()
        self._previous_handlers: dict[int, Any] = {}
        self.stop_requested = False

    def __enter__(self) -> "Interrupt":
        try:
            # Handlers only set a flag: saving happens between two steps, when the weights are
            # whole.
            self._previous_handlers = {
                number: signal.signal(number, self._handle_signal) for number in self.SIGNALS
            }
        except ValueError:  # Python allows handlers in the main thread alone
            self._previous_handlers = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        self.stop_requested = True
        # A second signal ends the process at once, as it would without this handler.
        signal.signal(number, self._previous_handlers[number])

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Save and stop if any worker was asked to."""
        # A collective in every step, also where nothing is requested: workers must call it alike.
        save = self._poll_files()
        self.stop_requested |= self._last_step is not None and self._state.step >= self._last_step
        stop, save = self._sum_over_workers(np.array([self.stop_requested, save], np.int32))
        # `|=` keeps a signal that arrived during the sum: all workers act on it at the next step.
        self.stop_requested |= bool(stop)
        if stop or save:
            self._checkpoints.save(self.model, self._state)
        if save:
            console.log(f"saved at step {self._state.step:,} on request")
        if stop:
            self.model.stop_training = True

    def _poll_files(self) -> bool:
        """Return whether a file requests a save; a file `STOP` counts as a signal."""
        if time.monotonic() - self._last_poll < self.POLL_SECONDS:
            return False
        self._last_poll = time.monotonic()
        self.stop_requested |= self._consume_file("STOP")
        return self._consume_file("SAVE")

    def _consume_file(self, name: str) -> bool:
        """Delete a request file; return whether there was one."""
        try:
            # Deleting is the test: of two processes that look, one succeeds.
            (self._folder / name).unlink()
        except OSError:
            return False
        return True


def tensorboard(folder: Path, interval: int) -> Sequence[keras.callbacks.Callback]:
    """Return Keras' TensorBoard callback as a list.

    Args:
        folder: where the event files are written.
        interval: steps between two entries.

    Raises:
        UserError: tensorboard is not installed.
    """
    require("tensorboard", "tensorboard")
    return [keras.callbacks.TensorBoard(log_dir=str(folder), update_freq=interval)]
