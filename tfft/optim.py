"""Optimizers and learning-rate schedules, from the section `optimizer` and the mask."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import keras
import numpy as np
from keras import ops

from tfft.config import OptimizerConfig
from tfft.spec import Mask


class WarmUpAndDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from zero, then constant, linear or cosine decay to zero.

    The rate of step s (from 0) is that of transformers' schedulers: s / warm-up before the peak,
    then (total - s) / (total - warm-up) for `linear`, (1 + cos(pi * t)) / 2 for `cosine`.

    Args:
        peak: the highest rate.
        kind: `constant`, `linear` or `cosine`.
        warmup: steps before the peak.
        total: steps of the training.
    """

    def __init__(self, peak: float, kind: str, warmup: int, total: int):
        super().__init__()
        self.peak, self.kind, self.warmup, self.total = peak, kind, warmup, total

    def __call__(self, step):
        """The rate of a step."""
        step = ops.cast(step, "float32")
        after = (step - self.warmup) / max(1, self.total - self.warmup)
        after = ops.clip(after, 0.0, 1.0)
        decay = {
            "constant": ops.ones_like(after),
            "linear": 1.0 - after,
            "cosine": 0.5 * (1.0 + ops.cos(np.pi * after)),
        }[self.kind]
        rising = step / max(1, self.warmup)
        return self.peak * ops.where(step < self.warmup, rising, decay)

    def get_config(self):
        """Arguments that rebuild the schedule."""
        return {"peak": self.peak, "kind": self.kind, "warmup": self.warmup, "total": self.total}


def schedule(config: OptimizerConfig, steps_per_epoch: int, total: int) -> WarmUpAndDecay:
    """The schedule with its lengths resolved to steps."""
    warmup = min(config.warmup.steps(steps_per_epoch, total), total)
    return WarmUpAndDecay(config.learning_rate, config.schedule, warmup, total)


def build(
    config: OptimizerConfig,
    mask: Mask,
    steps_per_epoch: int,
    total: int,
    precision: str = "float32",
) -> keras.optimizers.Optimizer:
    """The optimizer, its rate scaled for each variable as the mask says.

    Weight decay is decoupled (Loshchilov & Hutter 2019) and left out of vectors: biases and
    norms. In mixed_float16 the loss is scaled dynamically (Micikevicius et al. 2018, section 3.2).
    """
    common = {
        "learning_rate": schedule(config, steps_per_epoch, total),
        "global_clipnorm": config.clip_norm,
        "weight_decay": config.weight_decay,
        "use_ema": config.ema is not None,
        "ema_momentum": config.ema or 0.99,
    }
    adam = {"beta_1": config.beta_1, "beta_2": config.beta_2, "epsilon": config.epsilon}
    optimizer: keras.optimizers.Optimizer
    if config.name == "sgd":
        optimizer = ScaledSGD(mask.learning_rates, momentum=config.momentum, **common)
    elif config.name == "adam":
        optimizer = ScaledAdam(mask.learning_rates, **adam, **{**common, "weight_decay": None})
    else:
        optimizer = ScaledAdamW(mask.learning_rates, **adam, **common)
    if precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


@contextmanager
def averaged(model: keras.Model) -> Iterator[None]:
    """Within: the model has its averaged weights, where the optimizer keeps averages."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not optimizer.use_ema or ops.convert_to_numpy(optimizer.iterations) == 0:
        yield
        return
    variables = optimizer._trainable_variables
    before = [ops.convert_to_numpy(v).copy() for v in variables]
    for variable, average in zip(variables, optimizer._model_variables_moving_average, strict=True):
        variable.assign(ops.convert_to_numpy(average))
    try:
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)


class _Scaled:
    """Multiplies the learning rate of some variables, their decay included.

    The update is scaled, not the gradient: Adam's normalisation would undo that.
    """

    def __init__(self, factors: Mapping[str, float], **kwargs):
        super().__init__(**kwargs)
        self._factors = dict(factors)

    def update_step(self, gradient, variable, learning_rate):
        # This may be a tf.Variable, which has no path: go by its place.
        path = self._trainable_variables[self._get_variable_index(variable)].path
        factor = self._factors.get(path, 1.0)
        super().update_step(gradient, variable, learning_rate * factor)

    def _use_weight_decay(self, variable):
        return len(variable.shape) > 1

    def _apply_weight_decay(self, variables):
        if self.weight_decay is None:
            return
        for variable in variables:
            if self._use_weight_decay(variable):
                factor = self._factors.get(variable.path, 1.0)
                rate = ops.cast(self.learning_rate, variable.dtype) * factor
                variable.assign(variable - variable * (rate * self.weight_decay))


class ScaledAdamW(_Scaled, keras.optimizers.AdamW):
    """AdamW with a factor on the rate of each variable."""


class ScaledAdam(_Scaled, keras.optimizers.Adam):
    """Adam with a factor on the rate of each variable."""


class ScaledSGD(_Scaled, keras.optimizers.SGD):
    """SGD with a factor on the rate of each variable."""
