"""What happens between the steps of a training: progress, logs, validation, saving, stopping.

All of them read and write one `checkpoints.State`, which a checkpoint stores.
"""

import json
import math
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import keras

from tfft import log
from tfft.checkpoints import Checkpoints, State
from tfft.errors import UserError, require

LOG_EVERY = 10  # steps between two entries of metrics.jsonl
LOWER_IS_BETTER = ("log_loss", "calibration_error")


class Counter(keras.callbacks.Callback):
    """Counts the steps; must stand first in the list."""

    def __init__(self, state: State):
        super().__init__()
        self._state = state

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """One more step."""
        self._state.step += 1


class NonFinite(keras.callbacks.Callback):
    """Stops at a loss that is not a number, before anything is saved."""

    def __init__(self, state: State):
        super().__init__()
        self._state = state

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """See the class."""
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {self._state.step}; lower optimizer.learning_rate, or "
                "use distribute.precision: float32. The last checkpoint is kept"
            )


class Progress(keras.callbacks.Callback):
    """The line with epoch, step, loss, speed and the time left."""

    def __init__(self, state: State, steps_per_epoch: int, total: int, batch_size: int):
        super().__init__()
        self._state, self._per_epoch, self._total = state, steps_per_epoch, total
        self._batch_size = batch_size
        self._began: float | None = None
        self._first = state.step

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Rewrite the line."""
        done = self._state.step
        if self._began is None:  # the first step traces the graph: it says nothing of the speed
            self._began, self._first = time.monotonic(), done
            return
        seconds = time.monotonic() - self._began
        speed = (done - self._first) / seconds
        left = (self._total - done) / speed
        log.progress(
            f"epoch {(done - 1) // self._per_epoch + 1}/{math.ceil(self._total / self._per_epoch)}"
            f"  step {done:,}/{self._total:,}  loss {float(logs['loss']):.4f}"
            f"  {speed * self._batch_size:,.0f} examples/s  {int(left) // 60}:{int(left) % 60:02d}"
            " left",
            last=done == self._total,
        )


class History(keras.callbacks.Callback):
    """Appends the training loss and the learning rate to the history and to metrics.jsonl."""

    def __init__(self, state: State, path: Path, steps_per_epoch: int):
        super().__init__()
        self._state, self._path, self._per_epoch = state, path, steps_per_epoch
        self._mean = (0, 0.0)  # steps of the epoch, mean loss over them, at the last entry
        # Entries that an interrupted run wrote after its last checkpoint will come again.
        lines = (json.dumps(entry) for entry in state.history)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def add(self, entry: dict[str, float]) -> None:
        """One entry, with the step and the time."""
        entry = {"step": self._state.step, "time": round(time.time(), 1), **entry}
        self._state.history.append(entry)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Keras begins its running mean anew."""
        self._mean = (0, 0.0)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Every `LOG_EVERY` steps: the mean loss since the last entry."""
        count, mean = batch + 1, float(logs["loss"])
        if self._state.step % LOG_EVERY and self._state.step % self._per_epoch:
            return
        before, before_mean = self._mean
        self._mean = (count, mean)
        window = (count * mean - before * before_mean) / max(1, count - before)
        rate = float(self.model.optimizer.learning_rate)
        self.add({"train/loss": window, "learning_rate": rate})


class Validate(keras.callbacks.Callback):
    """Figures of the validation split every so often; keeps the best weights; stops early."""

    def __init__(
        self,
        state: State,
        history: History,
        evaluate: Callable[[], dict[str, float]],
        save_best: Callable[[], None],
        metric: str,
        every: int,
        total: int,
        patience: int | None,
        min_delta: float,
    ):
        super().__init__()
        self._state, self._history = state, history
        self._evaluate, self._save_best = evaluate, save_best
        self._metric, self._every, self._total = metric, max(1, every), total
        self._patience, self._min_delta = patience, min_delta

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Validate when it is time, and at the end."""
        state = self._state
        if state.step % self._every and state.step != self._total:
            return
        figures = self._evaluate()
        self._history.add({f"validation/{name}": value for name, value in figures.items()})
        value = figures[self._metric]
        better = self._better(value)
        shown = "  ".join(f"{name} {number:.4f}" for name, number in figures.items())
        log.say(f"validation at step {state.step:,}: {shown}{'  (best)' if better else ''}")
        if better:
            state.best, state.best_step, state.waited = value, state.step, 0
            self._save_best()
            return
        state.waited += 1
        if self._patience is not None and state.waited >= self._patience:
            log.say(f"stopping early: no better {self._metric} for {state.waited} validations")
            state.stopped = True
            self.model.stop_training = True

    def _better(self, value: float) -> bool:
        if self._state.best is None:
            return True
        gain = value - self._state.best
        return (-gain if self._metric in LOWER_IS_BETTER else gain) > self._min_delta


class Save(keras.callbacks.Callback):
    """Writes a checkpoint every so often, and at the end."""

    def __init__(self, state: State, checkpoints: Checkpoints, every: int, total: int):
        super().__init__()
        self._state, self._checkpoints = state, checkpoints
        self._every, self._total = max(1, every), total

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Save when it is time."""
        state = self._state
        if state.step % self._every == 0 or state.step == self._total or state.stopped:
            self._checkpoints.save(self.model, state)


class Interrupt(keras.callbacks.Callback):
    """SIGINT and SIGTERM save a checkpoint after the running step and stop; must stand last."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, state: State, checkpoints: Checkpoints):
        super().__init__()
        self._state, self._checkpoints = state, checkpoints
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
        if self.asked:
            self._checkpoints.save(self.model, self._state)
            self.model.stop_training = True


def tensorboard(folder: Path) -> Sequence[keras.callbacks.Callback]:
    """Keras' own TensorBoard callback.

    Raises:
        UserError: tensorboard is not installed.
    """
    require("tensorboard", "tensorboard")
    return [keras.callbacks.TensorBoard(log_dir=str(folder), update_freq=LOG_EVERY)]
