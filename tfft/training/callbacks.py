"""What happens between the steps of a training: progress, logs, validation, saving, stopping.

All of them read and write one `checkpoints.TrainingState`, which a checkpoint stores.
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
    """Stops at a loss or gradient that is not a number, before anything is saved.

    Such a step changed nothing: up to `allowed` of them are left out instead.
    """

    def __init__(self, state: TrainingState, allowed: int, where: Callable[[int], str]):
        super().__init__()
        self._state, self._allowed, self._where = state, allowed, where

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """See the class."""
        report = self.model.report
        if not report.skipped:
            return
        state = self._state
        state.skipped += report.skipped
        one = report.steps == 1
        at = f"step {state.step}" if one else f"one of the {report.steps} steps up to {state.step}"
        value = report.loss if one else "not finite"
        what = (
            "a gradient is not finite"
            if math.isfinite(report.loss) and one
            else (f"the loss is {value}")
        )
        rows = self._where(state.step) if one else ""
        if state.skipped > self._allowed:
            raise UserError(
                f"{what} at {at}; lower optimizer.learning_rate, use distribute.precision: "
                "float32, or leave such batches out with train.skip_non_finite. The last "
                f"checkpoint is kept{rows}"
            )
        left = f"{state.skipped} of at most {self._allowed}"
        console.log(f"warning: {what} at {at}: left out, {left}{rows}")


class Save(keras.callbacks.Callback):
    """Writes a checkpoint every so many steps or seconds, and at the end."""

    def __init__(
        self,
        state: TrainingState,
        checkpoints: Checkpoints,
        every: int,
        seconds: float | None,
        total: int,
    ):
        super().__init__()
        self._state, self._checkpoints = state, checkpoints
        self._every, self._seconds, self._total = max(1, every), seconds, total
        self._last = self._told = time.monotonic()
        self._meter = energy.Meter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Save when it is time."""
        state = self._state
        self._count()
        due = self._seconds is not None and time.monotonic() - self._last >= self._seconds
        if due or state.step % self._every == 0 or state.step == self._total or state.stopped:
            self._last = time.monotonic()
            self._checkpoints.save(self.model, state)

    def _count(self) -> None:
        """Time and energy since the last step."""
        state, now = self._state, time.monotonic()
        spent, self._told = now - self._told, now
        state.seconds = round(state.seconds + spent, 3)
        joules = self._meter.joules()
        if joules is not None:
            state.joules = round(state.joules + joules, 3)
            state.metered = round(state.metered + spent, 3)
            state.meters = self._meter.names


class Profile(keras.callbacks.Callback):
    """A TensorBoard profile of the steps from `first` to `last`, both counted from 1."""

    def __init__(self, state: TrainingState, folder: Path, first: int, last: int):
        super().__init__()
        self._state, self._folder = state, folder
        self._first, self._last = first, last
        self._running = False

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Start before the first."""
        if not self._running and self._state.step + 1 == self._first:
            tf.profiler.experimental.start(str(self._folder))
            self._running = True

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Stop after the last."""
        if self._running and self._state.step >= self._last:
            self._stop()

    def on_train_end(self, logs: Any = None) -> None:
        """Stop in any case."""
        if self._running:
            self._stop()

    def _stop(self) -> None:
        tf.profiler.experimental.stop()
        self._running = False
        console.log(f"profile: {self._folder}; tensorboard --logdir={self._folder} shows it")


class Interrupt(keras.callbacks.Callback):
    """Saves after the running step when asked to, and stops; must stand last.

    SIGINT, SIGTERM and a file `STOP` in the run directory save and stop; a file `SAVE` saves and
    the training goes on. What one worker is asked all do, at the same step.

    Args:
        folder: where the files may appear; they are taken away once they are seen.
        together: sums an array over the workers.
        until: the step after which it stops as if it were asked to.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)
    LOOK_EVERY = 1.0  # seconds

    def __init__(
        self,
        state: TrainingState,
        checkpoints: Checkpoints,
        folder: Path,
        together: Callable[[np.ndarray], np.ndarray],
        until: int | None = None,
    ):
        super().__init__()
        self._state, self._checkpoints = state, checkpoints
        self._folder, self._together, self._until = folder, together, until
        self._looked = time.monotonic()
        self._before: dict[int, Any] = {}
        self.asked = False

    def __enter__(self) -> "Interrupt":
        try:
            self._before = {s: signal.signal(s, self._ask) for s in self.SIGNALS}
        except ValueError:  # not in the main thread: whoever started it takes the signals
            self._before = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        # A second signal ends the process at once, as without us.
        signal.signal(number, self._before[number])

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Save and stop, if asked."""
        save = self._look()
        self.asked |= self._until is not None and self._state.step >= self._until
        stop, save = self._together(np.array([self.asked, save], np.int32))
        self.asked |= bool(stop)  # a signal may have come meanwhile: it counts at the next step
        if stop or save:
            self._checkpoints.save(self.model, self._state)
        if save:
            console.log(f"saved at step {self._state.step:,}, as asked")
        if stop:
            self.model.stop_training = True

    def _look(self) -> bool:
        """Whether a file asks to save; one that asks to stop counts as a signal."""
        if time.monotonic() - self._looked < self.LOOK_EVERY:
            return False
        self._looked = time.monotonic()
        self.asked |= self._taken("STOP")
        return self._taken("SAVE")

    def _taken(self, name: str) -> bool:
        try:
            (self._folder / name).unlink()
        except OSError:
            return False
        return True


def tensorboard(folder: Path, every: int) -> Sequence[keras.callbacks.Callback]:
    """Keras' own TensorBoard callback.

    Raises:
        UserError: tensorboard is not installed.
    """
    require("tensorboard", "tensorboard")
    return [keras.callbacks.TensorBoard(log_dir=str(folder), update_freq=every)]
