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
    """Callback that writes the progress line.

    It shows the epoch, step, loss, best validation metric, examples a second, time of a step, share
    of time spent waiting for input, and the remaining time.

    Args:
        state: gives the number of steps done and the best value of the metric.
        steps_per_epoch: steps of an epoch.
        total: steps of the whole training.
        batch_size: examples of a step.
        metric: name of the metric that chooses the best checkpoint.
    """

    def __init__(
        self,
        state: TrainingState,
        steps_per_epoch: int,
        total: int,
        batch_size: int,
        metric: str,
    ):
        super().__init__()
        self._metric = metric
        self._state, self._per_epoch, self._total = state, steps_per_epoch, total
        self._batch_size = batch_size
        self._start_time: float | None = None
        self._start_step = state.step
        self._wait_seconds = 0.0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Write the line; the first step of a start is not measured, because it traces graphs."""
        step = self._state.step
        if self._start_time is None:
            self._start_time, self._start_step = time.monotonic(), step
            return
        # An estimate: the loop times one of several steps.
        self._wait_seconds += self.model.report.wait
        elapsed = time.monotonic() - self._start_time
        steps_per_second = (step - self._start_step) / elapsed
        remaining = (self._total - step) / steps_per_second  # seconds
        best = "" if self._state.best is None else f"  best {self._metric} {self._state.best:.4f}"
        console.progress(
            f"epoch {(step - 1) // self._per_epoch + 1}/{math.ceil(self._total / self._per_epoch)}"
            f"  step {step:,}/{self._total:,}  loss {float(logs['loss']):.4f}{best}"
            f"  {steps_per_second * self._batch_size:,.0f} examples/s"
            f"  {1000 / steps_per_second:,.0f} ms a step"
            f", {self._wait_seconds / elapsed:.0%} waiting for input"
            f"  {int(remaining) // 60}:{int(remaining) % 60:02d} left",
            last=step == self._total,
        )


class History(keras.callbacks.Callback):
    """Callback that logs the training loss and the learning rate to the history and metrics.jsonl.

    Args:
        state: holds the history.
        path: metrics.jsonl; None: no file is written.
        interval: steps between two entries.
        steps_per_epoch: steps of an epoch, whose end has an entry too.
    """

    def __init__(
        self, state: TrainingState, path: Path | None, interval: int, steps_per_epoch: int
    ):
        super().__init__()
        self._state, self._path = state, path
        self._interval, self._per_epoch = interval, steps_per_epoch
        # Drop entries that an interrupted run wrote after its last checkpoint: the steps run again.
        if path is not None:
            lines = (json.dumps(entry) for entry in state.history)
            write_atomic(path, "".join(f"{line}\n" for line in lines))

    def add(self, entry: dict[str, float]) -> None:
        """Append an entry, with the step, the epoch (a fraction) and the time (seconds, Unix)."""
        step = self._state.step
        epoch, now = round(step / self._per_epoch, 4), round(time.time(), 1)
        entry = {"step": step, "epoch": epoch, "time": now, **entry}
        self._state.history.append(entry)
        if self._path is not None:
            with open_to_append(self._path) as file:
                file.write(json.dumps(entry) + "\n")

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Log the mean loss over the examples since the last entry, if an entry is due."""
        step = self._state.step
        if step % self._interval and step % self._per_epoch:
            return
        # The base rate of the schedule; factors of stages are in the mask table.
        learning_rate = float(self.model.optimizer.learning_rate)
        self.add({"train/loss": float(logs["loss"]), "learning_rate": learning_rate})
        # The next entry is the mean since this one.
        self.model.reset_metrics()
