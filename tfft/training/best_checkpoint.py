"""The choice of the best checkpoint: validation, early stopping, and what `best/` ends up with.

`best/` of the run directory always holds whole weights: the untrained ones at first, then those
of each validation that is better than all before, the last ones where there is no validation
split, and the soup where that is at least as good.
"""

import math
from typing import Any

import keras
import numpy as np

from tfft.config.tasks import Direction
from tfft.distribute import strategies
from tfft.evaluation import evaluate
from tfft.run import Run
from tfft.training import optimizers
from tfft.training.checkpoints import TrainingState
from tfft.training.input_pipeline import InputPipeline
from tfft.training.progress import History
from tfft.training.soup import Soup
from tfft.utils import console


def gain(direction: Direction, value: float, best: float | None) -> float:
    """Return how much better a value is than the best so far; infinite if there is none.

    Args:
        direction: `max` or `min`, the better values of the metric.
        value: the new value.
        best: the best value so far.
    """
    # Infinite, so that the first value is an improvement whatever `min_delta`.
    if best is None:
        return math.inf
    return value - best if direction == "max" else best - value


class Validate(keras.callbacks.Callback):
    """Validate every so many steps and at the end, save the best weights, and stop early.

    Args:
        state: holds the best value so far.
        history: gets the metrics.
        every: steps between two validations.
    """

    def __init__(
        self, run: Run, pipeline: InputPipeline, state: TrainingState, history: History, every: int
    ):
        super().__init__()
        self._run, self._pipeline = run, pipeline
        self._state, self._history = state, history
        self._every = max(1, every)
        self._direction = run.config.task.metrics[pipeline.train.metric]
        # Files of the soup are written by the chief alone, like `best/`.
        self._soup = soup_of(run) if strategies.workers().is_chief else None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Validate if it is due."""
        state, metric = self._state, self._pipeline.train.metric
        if state.step % self._every and state.step != self._pipeline.plan.total:
            return
        # The weights that are validated and saved are the averaged ones where there are averages.
        with optimizers.averaged(self._run.model):
            # Every worker validates: the prediction sums the logits over the workers.
            metrics = validation_metrics(self._run, self._pipeline)
            if self._is_best(metrics) and strategies.workers().is_chief:
                self._run.save_weights()
            if self._soup is not None:
                value = metrics[metric]
                # Offered at every validation, not only at the best: a soup needs several.
                self._soup.offer(
                    self.model, state.step, value if self._direction == "max" else -value
                )

    def _is_best(self, metrics: dict[str, float]) -> bool:
        """Record the metrics; stop the training if they have not improved for `patience` times."""
        state, metric = self._state, self._pipeline.train.metric
        early_stopping = self._pipeline.train.early_stopping
        self._history.add({f"validation/{name}": value for name, value in metrics.items()})
        min_delta = early_stopping.min_delta if early_stopping else 0.0
        improved = gain(self._direction, metrics[metric], state.best) > min_delta
        values = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        console.log(f"validation at step {state.step:,}: {values}{'  (best)' if improved else ''}")
        # All workers compute the same metrics, so they stop at the same step.
        if improved:
            state.best, state.best_step, state.waited = metrics[metric], state.step, 0
            return True
        state.waited += 1
        if early_stopping and state.waited >= early_stopping.patience:
            console.log(f"stopping early: no better {metric} for {state.waited} validations")
            state.stopped = True
            self.model.stop_training = True
        return False


def finish(run: Run, pipeline: InputPipeline, state: TrainingState) -> None:
    """Write the final weights to `best/`: the last ones without a validation split, or the soup.

    Also where a run resumes at its end: it may have been killed before it had written `best/`.
    """
    is_chief = strategies.workers().is_chief
    if state.best is None and is_chief:  # nothing was validated: the last weights are the best
        with optimizers.averaged(run.model):
            run.save()
    if is_chief and (soup := soup_of(run)) is not None:
        _average(run, pipeline, state, soup)
    # best/ is written when the other workers read it.
    strategies.sum_over_workers(run.model.distribute_strategy, np.zeros(1, np.int32))


def validation_metrics(run: Run, pipeline: InputPipeline) -> dict[str, float]:
    """Return the task's metrics on the validation split, by name."""
    split, batch_size = pipeline.data.validation, run.config.evaluate.batch_size
    records = evaluate.predict(
        run.task, run.model, split, pipeline.validation_rows, batch_size, run.fitted
    )
    return run.task.metrics(records, split.targets, run.fitted)


def soup_of(run: Run) -> Soup | None:
    """Return the soup of a run, None where its config has none."""
    size = run.config.train.soup
    return Soup(run.workdir / "soup", size, run.trained) if size else None


def _average(run: Run, pipeline: InputPipeline, state: TrainingState, soup: Soup) -> None:
    """Average the best weights greedily; save the average if it is at least as good."""
    metric = pipeline.train.metric
    direction = run.config.task.metrics[metric]
    value = soup.cook(
        run.model,
        lambda: validation_metrics(run, pipeline)[metric],
        direction == "max",
    )
    if value is not None and gain(direction, value, state.best) >= 0:
        run.save_weights()
        state.best = value
