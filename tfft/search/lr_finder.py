"""The learning-rate finder: the loss while the rate rises from far too low to far too high.

Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3. What is suggested
is where the smoothed loss falls fastest, as in fastai; a tenth of the rate at its lowest is given
beside it. It trains a fresh model for a few steps, and keeps nothing.
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

SMOOTHING = 0.9  # of the running mean of the loss
DIVERGED = 4.0  # times the lowest loss: it stops there
WARMED = 10  # steps before it may stop, or suggest


@dataclass(frozen=True)
class LearningRateCurve:
    """The rates that were tried, the loss at each, its running mean, and two suggestions."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    steepest: float
    lowest: float

    def text(self) -> str:
        """What to make of it, as lines."""
        step = max(1, len(self.rates) // 20)
        lines = ["      rate      loss"]
        rows = list(zip(self.rates, self.smoothed, strict=True))[::step]
        lines += [f"  {rate:.2e}  {loss:8.4f}" for rate, loss in rows]
        return "\n".join(
            [
                *lines,
                f"steepest fall at {self.steepest:.1e}; a tenth of the lowest point "
                f"{self.lowest / 10:.1e}",
                f"try --set=optimizer.learning_rate={self.steepest:.1e}",
            ]
        )


class Ramp(keras.optimizers.schedules.LearningRateSchedule):
    """From `low` to `high` in `steps` equal factors."""

    def __init__(self, low: float, high: float, steps: int):
        super().__init__()
        self.low, self.high, self.steps = low, high, steps

    def __call__(self, step):
        """The rate of a step."""
        share = ops.cast(step, "float32") / max(1, self.steps - 1)
        return self.low * ops.power(self.high / self.low, share)

    def get_config(self):
        """Arguments that rebuild the schedule."""
        return {"low": self.low, "high": self.high, "steps": self.steps}


def find(config: Config, low: float, high: float, steps: int) -> LearningRateCurve:
    """Train `steps` steps at rising rates; the masks are those of the first step.

    Raises:
        UserError: the rates are not in order, or the loss diverged at once.
    """
    if not 0 < low < high:
        raise UserError(f"--low, --high: must be 0 < low < high; received {low:g}, {high:g}")
    config = advice.resolve(config, None)
    more = config.train.model_copy(update={"cache_features": False})
    config = config.model_copy(update={"train": more})
    strategy = strategies.setup(config.distribute, config.train.seed, config.train.deterministic)
    with strategy.scope():
        result, data, plan, course = setup.prepare(config, Path("runs"))
        result.targets = setup.teacher_targets(config, data)
        optimizers.inner(result.model.optimizer).learning_rate = Ramp(low, high, steps)
    masks.set_trainable(result.model, course.at(0).mask)
    feed = InputPipeline(result, data, plan)
    return _found(_climb(result.model, feed, steps), low, high, steps)


def _climb(model: Model, feed: InputPipeline, steps: int) -> list[float]:
    """The loss of each step, until it diverges."""
    function, iterator, taken = model.make_train_function(), feed.after(0), 0
    losses: list[float] = []
    smoothed = _Smoothed()
    while len(losses) < steps:
        if taken == feed.plan.total:  # the rows come again
            iterator, taken = feed.after(0), 0
        function(iterator, 1)
        taken += 1
        loss = model.report.loss
        if not math.isfinite(loss):
            break
        losses.append(loss)
        mean = smoothed.add(loss)
        console.progress(f"step {len(losses)}/{steps}  loss {loss:.4f}", last=len(losses) == steps)
        if len(losses) > WARMED and mean > DIVERGED * smoothed.least:
            break
    return losses


class _Smoothed:
    """A running mean that is not drawn to its start."""

    def __init__(self) -> None:
        self._sum, self._count, self.least = 0.0, 0, math.inf

    def add(self, value: float) -> float:
        self._count += 1
        self._sum = SMOOTHING * self._sum + (1 - SMOOTHING) * value
        mean = self._sum / (1 - SMOOTHING**self._count)
        self.least = min(self.least, mean)
        return mean


def _found(losses: list[float], low: float, high: float, steps: int) -> LearningRateCurve:
    if len(losses) < WARMED:
        raise UserError(
            f"the loss is not finite after {len(losses)} steps: give a lower --low than {low:g}"
        )
    rates = [low * (high / low) ** (i / max(1, steps - 1)) for i in range(len(losses))]
    smoothing = _Smoothed()
    smoothed = [smoothing.add(loss) for loss in losses]
    bottom = max(int(np.argmin(smoothed)), 2)
    slopes = np.gradient(np.array(smoothed[: bottom + 1]))
    return LearningRateCurve(
        rates, losses, smoothed, rates[int(np.argmin(slopes))], rates[int(np.argmin(smoothed))]
    )


def write(found: LearningRateCurve, path: Path) -> None:
    """A page with the plot."""
    exponents = [math.log10(rate) for rate in found.rates]
    lines: dict[str, Any] = {
        "loss": list(zip(exponents, found.losses, strict=True)),
        "smoothed": list(zip(exponents, found.smoothed, strict=True)),
    }
    report.write_page(
        path,
        "Learning rates",
        report.plots.curves("loss by learning rate", lines, "log10 of the learning rate"),
        found.text(),
    )
