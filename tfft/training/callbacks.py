"""What happens between the steps of a training: progress, logs, validation, saving, stopping.

All of them read and write one `checkpoints.TrainingState`, which a checkpoint stores.
"""

import json
import math
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfft.training.checkpoints import Checkpoints, TrainingState
from tfft.training.soup import Soup
from tfft.utils import console, energy
from tfft.utils.errors import UserError, require
from tfft.utils.files import open_to_append, write_atomic

LOWER_IS_BETTER = ("log_loss", "calibration_error")


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


class Progress(keras.callbacks.Callback):
    """The line with epoch, step, loss, speed, the share of time spent waiting for input, and the
    time left."""

    def __init__(self, state: TrainingState, steps_per_epoch: int, total: int, batch_size: int):
        super().__init__()
        self._state, self._per_epoch, self._total = state, steps_per_epoch, total
        self._batch_size = batch_size
        self._began: float | None = None
        self._first = state.step
        self._waited = 0.0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Rewrite the line."""
        done = self._state.step
        if self._began is None:  # the first step warms up: it says nothing of the speed
            self._began, self._first = time.monotonic(), done
            return
        self._waited += self.model.report.wait
        seconds = time.monotonic() - self._began
        speed = (done - self._first) / seconds
        left = (self._total - done) / speed
        console.progress(
            f"epoch {(done - 1) // self._per_epoch + 1}/{math.ceil(self._total / self._per_epoch)}"
            f"  step {done:,}/{self._total:,}  loss {float(logs['loss']):.4f}"
            f"  {speed * self._batch_size:,.0f} examples/s"
            f"  {1000 / speed:,.0f} ms a step, {self._waited / seconds:.0%} waiting for input"
            f"  {int(left) // 60}:{int(left) % 60:02d} left",
            last=done == self._total,
        )


class History(keras.callbacks.Callback):
    """Appends the training loss and the learning rate to the history and to metrics.jsonl."""

    def __init__(self, state: TrainingState, path: Path | None, every: int, steps_per_epoch: int):
        super().__init__()
        self._state, self._path = state, path
        self._every, self._per_epoch = every, steps_per_epoch
        # Entries that an interrupted run wrote after its last checkpoint will come again.
        if path is not None:
            lines = (json.dumps(entry) for entry in state.history)
            write_atomic(path, "".join(f"{line}\n" for line in lines))

    def add(self, entry: dict[str, float]) -> None:
        """One entry, with the step, the epochs that this is, and the time."""
        step = self._state.step
        epoch, now = round(step / self._per_epoch, 4), round(time.time(), 1)
        entry = {"step": step, "epoch": epoch, "time": now, **entry}
        self._state.history.append(entry)
        if self._path is not None:
            with open_to_append(self._path) as file:
                file.write(json.dumps(entry) + "\n")

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Every so often: the mean loss over the examples since the last entry."""
        step = self._state.step
        if step % self._every and step % self._per_epoch:
            return
        rate = float(self.model.optimizer.learning_rate)
        self.add({"train/loss": float(logs["loss"]), "learning_rate": rate})
        self.model.reset_metrics()


def gain(metric: str, value: float, best: float | None) -> float:
    """How much better a value is than the best so far, in the metric's own direction."""
    if best is None:
        return math.inf
    return best - value if metric in LOWER_IS_BETTER else value - best


class Validate(keras.callbacks.Callback):
    """Figures of the validation split every so often; keeps the best weights; stops early."""

    def __init__(
        self,
        state: TrainingState,
        history: History,
        evaluate: Callable[[], AbstractContextManager[tuple[dict[str, float], Callable[[], None]]]],
        soup: Soup | None,
        metric: str,
        every: int,
        total: int,
        patience: int | None,
        min_delta: float,
    ):
        super().__init__()
        self._state, self._history = state, history
        self._evaluate, self._soup = evaluate, soup
        self._metric, self._every, self._total = metric, max(1, every), total
        self._patience, self._min_delta = patience, min_delta

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Validate when it is time, and at the end."""
        state = self._state
        if state.step % self._every and state.step != self._total:
            return
        with self._evaluate() as (figures, save):
            if self._judge(figures):
                save()
            if self._soup is not None:
                value = figures[self._metric]
                worth = -value if self._metric in LOWER_IS_BETTER else value
                self._soup.offer(self.model, state.step, worth)

    def _judge(self, figures: dict[str, float]) -> bool:
        """Whether they are the best so far; stops where they have not been for too long."""
        state = self._state
        self._history.add({f"validation/{name}": value for name, value in figures.items()})
        value = figures[self._metric]
        better = self._better(value)
        shown = "  ".join(f"{name} {number:.4f}" for name, number in figures.items())
        console.log(f"validation at step {state.step:,}: {shown}{'  (best)' if better else ''}")
        if better:
            state.best, state.best_step, state.waited = value, state.step, 0
            return True
        state.waited += 1
        if self._patience is not None and state.waited >= self._patience:
            console.log(f"stopping early: no better {self._metric} for {state.waited} validations")
            state.stopped = True
            self.model.stop_training = True
        return False

    def _better(self, value: float) -> bool:
        if self._state.best is None:
            return True
        return gain(self._metric, value, self._state.best) > self._min_delta


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
