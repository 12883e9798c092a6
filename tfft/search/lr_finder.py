"""The learning-rate finder: train with a rate that rises from far too low to far too high.

Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3. The suggested rate
is where the smoothed loss falls fastest, as in fastai; a tenth of the rate at the lowest loss is
reported beside it. Trains a fresh model for a few steps and saves nothing.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from tfft import report
from tfft.config import Config
from tfft.distribute import strategies
from tfft.model import Model, masks
from tfft.training import advice, optimizers, setup
from tfft.training.input_pipeline import InputPipeline
from tfft.utils import console
from tfft.utils.errors import UserError

SMOOTHING = 0.9  # weight of the past in the running mean of the loss
DIVERGENCE_FACTOR = 4.0  # the run stops at this multiple of the lowest smoothed loss
MIN_STEPS = 10  # steps before the run may stop or suggest a rate


@dataclass(frozen=True)
class LearningRateCurve:
    """The result of the learning-rate finder.

    Attributes:
        rates: learning rate of each step.
        losses: loss of each step.
        smoothed: bias-corrected running mean of the losses.
        steepest: rate at which the smoothed loss falls fastest.
        lowest: rate at which the smoothed loss is lowest.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    steepest: float
    lowest: float

    def text(self) -> str:
        """Return the curve as a table of about 20 lines and the suggested rates."""
        step = max(1, len(self.rates) // 20)
        lines = ["      rate      loss"]
        points = list(zip(self.rates, self.smoothed, strict=True))[::step]
        lines += [f"  {rate:.2e}  {loss:8.4f}" for rate, loss in points]
        return "\n".join(
            [
                *lines,
                f"steepest fall at {self.steepest:.1e}; a tenth of the lowest point "
                f"{self.lowest / 10:.1e}",
                f"try --set=optimizer.learning_rate={self.steepest:.1e}",
            ]
        )


class Ramp(keras.optimizers.schedules.LearningRateSchedule):
    """A learning-rate schedule that rises from `low` to `high` by equal factors."""

    def __init__(self, low: float, high: float, steps: int):
        super().__init__()
        self.low, self.high, self.steps = low, high, steps

    def __call__(self, step):
        """Return the rate of a step."""
        share = ops.cast(step, "float32") / max(1, self.steps - 1)
        return self.low * ops.power(self.high / self.low, share)

    def get_config(self):
        """Return the arguments that rebuild the schedule."""
        return {"low": self.low, "high": self.high, "steps": self.steps}


def find(config: Config, low: float, high: float, steps: int) -> LearningRateCurve:
    """Train `steps` steps at rising rates, with the variables that are trainable in the first step.

    Args:
        config: config of the run; `method: auto` is resolved first.
        low: rate of the first step.
        high: rate of the last step.
        steps: number of steps; fewer are trained if the loss diverges.

    Raises:
        UserError: the rates are not in order, or the loss diverges within the first steps.
    """
    if not 0 < low < high:
        raise UserError(f"--low, --high: must be 0 < low < high. Received: {low:g}, {high:g}")
    config = advice.resolve(config, None)
    # Caching features takes a pass over all rows, which a few steps do not repay.
    train_config = config.train.model_copy(update={"cache_features": False})
    config = config.model_copy(update={"train": train_config})
    strategy = strategies.setup(config.distribute, config.train.seed, config.train.deterministic)
    with strategy.scope():
        result, data, plan, schedule = setup.prepare(config, Path("runs"))
        result.targets = setup.teacher_targets(config, data)
        optimizers.inner(result.model.optimizer).learning_rate = Ramp(low, high, steps)
    masks.set_trainable(result.model, schedule.at(0).mask)
    pipeline = InputPipeline(result, data, plan)
    return _to_curve(_train_rising(result.model, pipeline, steps), low, high, steps)


def _train_rising(model: Model, pipeline: InputPipeline, steps: int) -> list[float]:
    """Return the loss of each step, until the loss diverges."""
    train_function, iterator, num_taken = model.make_train_function(), pipeline.after(0), 0
    losses: list[float] = []
    running_mean = _RunningMean()
    while len(losses) < steps:
        if num_taken == pipeline.plan.total:  # start another pass over the rows
            iterator, num_taken = pipeline.after(0), 0
        train_function(iterator, 1)
        num_taken += 1
        loss = model.report.loss
        if not math.isfinite(loss):
            break
        losses.append(loss)
        mean = running_mean.add(loss)
        console.progress(f"step {len(losses)}/{steps}  loss {loss:.4f}", last=len(losses) == steps)
        if len(losses) > MIN_STEPS and mean > DIVERGENCE_FACTOR * running_mean.least:
            break
    return losses


class _RunningMean:
    """A running mean with bias correction: it is not drawn to the initial zero."""

    def __init__(self) -> None:
        self._sum, self._count, self.least = 0.0, 0, math.inf

    def add(self, value: float) -> float:
        self._count += 1
        self._sum = SMOOTHING * self._sum + (1 - SMOOTHING) * value
        mean = self._sum / (1 - SMOOTHING**self._count)
        self.least = min(self.least, mean)
        return mean


def _to_curve(losses: list[float], low: float, high: float, steps: int) -> LearningRateCurve:
    """Build the curve and its suggestions from the losses.

    Raises:
        UserError: fewer than `MIN_STEPS` losses are finite.
    """
    if len(losses) < MIN_STEPS:
        raise UserError(
            f"--low: the loss must be finite for {MIN_STEPS} steps; choose a lower rate. "
            f"Received: {low:g}, with {len(losses)} finite losses"
        )
    rates = [low * (high / low) ** (i / max(1, steps - 1)) for i in range(len(losses))]
    running_mean = _RunningMean()
    smoothed = [running_mean.add(loss) for loss in losses]
    # At least three points, so that there are slopes if the loss only rises.
    lowest_step = max(int(np.argmin(smoothed)), 2)
    # Only up to the lowest loss: beyond it the training diverges.
    slopes = np.gradient(np.array(smoothed[: lowest_step + 1]))
    return LearningRateCurve(
        rates, losses, smoothed, rates[int(np.argmin(slopes))], rates[int(np.argmin(smoothed))]
    )


def write(curve: LearningRateCurve, path: Path) -> None:
    """Write a page with the plot of the curve."""
    exponents = [math.log10(rate) for rate in curve.rates]
    series: dict[str, Any] = {
        "loss": list(zip(exponents, curve.losses, strict=True)),
        "smoothed": list(zip(exponents, curve.smoothed, strict=True)),
    }
    report.write_page(
        path,
        "Learning rates",
        report.plots.curves("loss by learning rate", series, "log10 of the learning rate"),
        curve.text(),
    )
