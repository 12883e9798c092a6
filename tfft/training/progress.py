"""The progress line of a training, and the log of its losses and metrics."""

import json
import math
import time
from pathlib import Path
from typing import Any

import keras

from tfft.training.checkpoints import TrainingState
from tfft.utils import console
from tfft.utils.files import open_to_append, write_atomic


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
