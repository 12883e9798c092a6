"""Optimizers and learning-rate schedules, from the section `optimizer` and the course."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfft.config import OptimizerConfig
from tfft.training.phases import TrainingSchedule
from tfft.utils.errors import UserError, nearest


class ScheduleFreeAdamW(keras.optimizers.ScheduleFreeAdamW):
    """Keras' optimizer with the update of its paper.

    Keras 3.15 on TensorFlow takes the old z after it has been changed, so that the average is not
    one. Defazio et al. 2024, "The Road Less Scheduled", equations 3 to 5, with weights c = 1 / t.
    """

    def update_step(self, gradient, variable, learning_rate):
        """One variable's update; the variable is y."""
        at = self._get_variable_index(variable)
        z, second = self._momentums[at], self._velocities[at]
        rate, gradient = ops.cast(learning_rate, z.dtype), ops.cast(gradient, z.dtype)
        step = ops.cast(self.iterations + 1, z.dtype)
        if self.warmup_steps:
            rate = rate * ops.minimum(step / self.warmup_steps, 1.0)
        second_new = self.beta_2 * second + (1 - self.beta_2) * ops.square(gradient)
        scale = ops.sqrt(second_new / (1 - ops.power(self.beta_2, step))) + self.epsilon
        z_new = z - rate * gradient / scale
        beta = self.beta_1
        x = (ops.convert_to_tensor(variable) - (1 - beta) * z) / beta
        x_new = x + (z_new - x) / step
        self.assign(second, second_new)
        self.assign(variable, (1 - beta) * z_new + beta * x_new)
        self.assign(z, z_new)


class SharedBiasCorrection:
    """Compute Adam's bias-corrected rate once per step instead of once per variable.

    The update is bit-identical to Keras' (Kingma & Ba 2015, "Adam", end of section 2) and its
    graph has about half the operations.
    """

    def update_step(self, gradient, variable, learning_rate):
        """One variable's update."""
        if self.amsgrad:
            super().update_step(gradient, variable, learning_rate)
            return
        dtype, index = variable.dtype, self._get_variable_index(variable)
        first, second = self._momentums[index], self._velocities[index]
        rate = self.once(
            ("rate", id(learning_rate), self._since, dtype),
            lambda: self._corrected(ops.cast(learning_rate, dtype), dtype),
        )
        gradient = tf.cast(gradient, dtype)
        self.assign_add(first, (gradient - first.value) * (1 - self.beta_1))
        self.assign_add(second, (tf.square(gradient) - second.value) * (1 - self.beta_2))
        self.assign_sub(variable, first.value * rate / (tf.sqrt(second.value) + self.epsilon))

    def _corrected(self, learning_rate, dtype):
        step = ops.cast(self.iterations + 1, dtype)
        powers = [ops.power(ops.cast(beta, dtype), step) for beta in (self.beta_1, self.beta_2)]
        return learning_rate * ops.sqrt(1 - powers[1]) / (1 - powers[0])


class Adam(SharedBiasCorrection, keras.optimizers.Adam):
    """Keras' Adam."""


class AdamW(SharedBiasCorrection, keras.optimizers.AdamW):
    """Keras' AdamW."""


OPTIMIZERS: Mapping[str, type[keras.optimizers.Optimizer]] = {
    "adadelta": keras.optimizers.Adadelta,
    "adafactor": keras.optimizers.Adafactor,
    "adagrad": keras.optimizers.Adagrad,
    "adam": Adam,
    "adamax": keras.optimizers.Adamax,
    "adamw": AdamW,
    "ftrl": keras.optimizers.Ftrl,
    "lamb": keras.optimizers.Lamb,
    "lion": keras.optimizers.Lion,
    "muon": keras.optimizers.Muon,
    "nadam": keras.optimizers.Nadam,
    "rmsprop": keras.optimizers.RMSprop,
    "schedule_free_adamw": ScheduleFreeAdamW,
    "sgd": keras.optimizers.SGD,
}
# Fields of the section that some optimizers take; others refuse them.
_SHARED = ("beta_1", "beta_2", "epsilon")


class WarmUpAndDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then constant, linear, cosine or polynomial decay.

    The rate of step s (from 0) is that of transformers' schedulers: s / warm-up before the peak,
    then with t = (s - warm-up) / (total - warm-up): 1 - t for `linear`, (1 + cos(pi * t)) / 2 for
    `cosine`, (1 - t) ** power for `polynomial`, all from the peak to `end` of it.
    `slanted_triangular` (Howard & Ruder 2018, equation 3, ratio 1 / end) rises from `end` too.

    Args:
        peak: the highest rate.
        kind: of the decay.
        warmup: steps before the peak.
        total: steps of the training.
        end: the last rate, as a share of the peak.
        power: of `polynomial`.
    """

    def __init__(
        self,
        peak: float,
        kind: str,
        warmup: int,
        total: int,
        end: float = 0.0,
        power: float = 1.0,
    ):
        super().__init__()
        self.peak, self.kind, self.warmup, self.total = peak, kind, warmup, total
        self.end, self.power = end, power

    def __call__(self, step):
        """The rate of a step."""
        step = ops.cast(step, "float32")
        after = (step - self.warmup) / max(1, self.total - self.warmup)
        after = ops.clip(after, 0.0, 1.0)
        decay = {
            "constant": lambda: ops.ones_like(after),
            "linear": lambda: 1.0 - after,
            "slanted_triangular": lambda: 1.0 - after,
            "cosine": lambda: 0.5 * (1.0 + ops.cos(np.pi * after)),
            "polynomial": lambda: ops.power(1.0 - after, self.power),
        }[self.kind]()
        if self.kind != "constant":
            decay = self.end + (1.0 - self.end) * decay
        rising = step / max(1, self.warmup)
        if self.kind == "slanted_triangular":
            rising = self.end + (1.0 - self.end) * rising
        return self.peak * ops.where(step < self.warmup, rising, decay)

    def get_config(self):
        """Arguments that rebuild the schedule."""
        names = ("peak", "kind", "warmup", "total", "end", "power")
        return {name: getattr(self, name) for name in names}


class OneAfterAnother(keras.optimizers.schedules.LearningRateSchedule):
    """Schedules that each count from their own start.

    Args:
        starts: first steps, ascending, the first being 0.
        schedules: one for each.
    """

    def __init__(self, starts: Sequence[int], schedules: Sequence[WarmUpAndDecay]):
        super().__init__()
        self.starts, self.schedules = list(starts), list(schedules)

    def __call__(self, step):
        """The rate of a step."""
        rate = self.schedules[0](step)
        for start, schedule in zip(self.starts[1:], self.schedules[1:], strict=True):
            later = ops.cast(step, "int32") - start
            rate = ops.where(later >= 0, schedule(ops.maximum(later, 0)), rate)
        return rate

    def get_config(self):
        """Arguments that rebuild the schedule."""
        return {"starts": self.starts, "schedules": [s.get_config() for s in self.schedules]}


def schedule(
    config: OptimizerConfig, course: TrainingSchedule, per_epoch: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """The schedule with its lengths resolved to steps, one for each stretch that starts anew."""
    anew = (
        [s for s in course.phases if s.restart_schedule and s.start]
        if len(course.phases) > 1
        else []
    )
    starts = [0, *(s.start for s in anew)]
    peaks = [s.learning_rate for s in (course.phases[0], *anew)]
    made = []
    for start, end, peak in zip(starts, [*starts[1:], course.total], peaks, strict=True):
        total = end - start
        made.append(
            WarmUpAndDecay(
                peak or config.learning_rate,
                config.schedule,
                min(config.warmup.steps(per_epoch, total), total),
                total,
                config.end_factor,
                config.power,
            )
        )
    return made[0] if len(made) == 1 else OneAfterAnother(starts, made)


def build(
    config: OptimizerConfig, course: TrainingSchedule, per_epoch: int, precision: str = "float32"
) -> keras.optimizers.Optimizer:
    """The optimizer, its rate scaled for each variable as the mask of the stretch says.

    Weight decay is decoupled (Loshchilov & Hutter 2019) and left out of vectors: biases and
    norms. In mixed_float16 the loss is scaled dynamically (Micikevicius et al. 2018, section 3.2).

    Raises:
        UserError: an option that this optimizer does not have.
    """
    kind = OPTIMIZERS[config.name]
    accepted = inspect.signature(kind.__init__).parameters
    options = {n: getattr(config, n) for n in _SHARED if n in accepted}
    if config.name == "sgd":
        options["momentum"] = config.momentum
    for name, value in config.options.items():
        if name not in accepted or name in ("self", "name", "learning_rate", "kwargs"):
            valid = [n for n in accepted if n not in ("self", "name", "learning_rate", "kwargs")]
            raise UserError(
                f"optimizer.options: {config.name} has no {name!r}{nearest(name, valid)}"
            )
        options[name] = value
    swa = config.swa
    options |= {
        "learning_rate": schedule(config, course, per_epoch),
        "global_clipnorm": config.clip_norm,
        "clipvalue": config.clip_value,
        # Plain Adam has none: that would be its L2 form, which `regularization.l2` is.
        "weight_decay": None if config.name == "adam" else config.weight_decay,
        "use_ema": config.ema is not None or swa is not None,
        "ema_momentum": config.ema or 0.99,
    }
    try:
        optimizer = _scaled(kind)(**options)
    except (ValueError, TypeError) as error:
        raise UserError(f"optimizer: {config.name}: {' '.join(str(error).split())}") from None
    if swa is not None:
        start = min(swa.start.steps(per_epoch, course.total), course.total)
        optimizer.swa = start, max(1, swa.every.steps(per_epoch, course.total))
    enter(optimizer, course, 0)
    if precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def enter(optimizer: keras.optimizers.Optimizer, course: TrainingSchedule, step: int) -> None:
    """Take the rates of the stretch that `step` belongs to; the step must be traced anew."""
    optimizer = inner(optimizer)
    optimizer.factors = dict(course.at(step).mask.learning_rates)
    optimizer.starts = dict(course.starts)


def inner(optimizer: Any) -> Any:
    """The optimizer itself, out of a loss scaler."""
    return getattr(optimizer, "inner_optimizer", optimizer)


@contextmanager
def averaged(model: keras.Model) -> Iterator[None]:
    """Within: the model has its averaged weights, where the optimizer keeps averages."""
    optimizer = inner(model.optimizer)
    averages = {} if ops.convert_to_numpy(optimizer.iterations) == 0 else _averages(optimizer)
    variables = optimizer._trainable_variables
    before = {i: ops.convert_to_numpy(variables[i]).copy() for i in averages}
    for i, value in averages.items():
        variables[i].assign(value)
    try:
        yield
    finally:
        for i, value in before.items():
            variables[i].assign(value)


def _averages(optimizer: Any) -> dict[int, np.ndarray]:
    """The averaged value of each variable, by its place in the optimizer."""
    if optimizer.use_ema:
        kept = enumerate(optimizer._model_variables_moving_average)
        return {i: ops.convert_to_numpy(average) for i, average in kept}
    if isinstance(optimizer, keras.optimizers.ScheduleFreeAdamW):
        # The variables are where gradients are taken, y = (1 - beta) z + beta x; the average is x
        # (Defazio et al. 2024, "The Road Less Scheduled", equations 3 to 5).
        beta = optimizer.beta_1
        pairs = zip(optimizer._trainable_variables, optimizer._momentums, strict=True)
        pairs = [(ops.convert_to_numpy(y), ops.convert_to_numpy(z)) for y, z in pairs]
        return {i: (y - (1 - beta) * z) / beta for i, (y, z) in enumerate(pairs)}
    return {}


class Scaled:
    """What tfft adds to a Keras optimizer: a rate for each variable, its own count of steps for
    those that begin to move later, no decay of vectors, and averages by SWA.

    The update is scaled, not the gradient: Adam's normalisation would undo that.

    Attributes:
        factors: variable path -> factor on the rate, default 1.
        starts: variable path -> the step at which it begins to move.
        swa: (first step, steps between) of stochastic weight averaging, None for none.
    """

    factors: Mapping[str, float] = {}
    starts: Mapping[str, int] = {}
    swa: tuple[int, int] | None = None
    _since = 0
    _shared: dict[Any, Any] | None = None  # what `once` computed in the running update

    @property
    def iterations(self):
        """Steps done; within an update those since the variable began to move, so that Adam's
        bias correction is that of a variable with empty moments."""
        return super().iterations - self._since if self._since else super().iterations

    def apply(self, grads, trainable_variables=None):
        """Update the variables; what is the same for all of them is computed once."""
        self.__dict__["_shared"] = {}  # past Keras' and TensorFlow's tracking of attributes
        try:
            super().apply(grads, trainable_variables)
        finally:
            self.__dict__["_shared"] = None

    def once(self, key, compute):
        """Return `compute()`, the same tensor for the same key within an update.

        Branches of a condition are graphs of their own, which share nothing with each other.
        """
        if self._shared is None:
            return compute()
        key = (id(tf.compat.v1.get_default_graph()), key)
        if key not in self._shared:
            self._shared[key] = compute()
        return self._shared[key]

    def _get_current_learning_rate(self):
        return self.once("learning_rate", super()._get_current_learning_rate)

    def update_step(self, gradient, variable, learning_rate):
        """One variable's update."""
        # This may be a tf.Variable, which has no path: go by its place.
        path = self._trainable_variables[self._get_variable_index(variable)].path
        self._since = self.starts.get(path, 0)
        try:
            factor = self.factors.get(path, 1.0)
            rate = self.once(("scaled", factor), lambda: learning_rate * factor)
            super().update_step(gradient, variable, rate)
        finally:
            self._since = 0

    def _use_weight_decay(self, variable):
        return len(variable.shape) > 1

    def _apply_weight_decay(self, variables):
        if self.weight_decay is None:
            return
        for variable in variables:
            if self._use_weight_decay(variable):
                factor, dtype = self.factors.get(variable.path, 1.0), variable.dtype
                share = self.once(
                    ("decay", factor, dtype),
                    lambda f=factor, d=dtype: (
                        ops.cast(self.learning_rate, d) * f * self.weight_decay
                    ),
                )
                variable.assign(variable - variable * share)

    def _update_model_variables_moving_average(self, trainable_variables):
        if self.swa is None:
            super()._update_model_variables_moving_average(trainable_variables)
            return
        # Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima", equation 1 (section 3.2).
        start, every = self.swa
        after = self._iterations + 1 - start  # steps since the start, this one counted
        taken = ops.cast(after // every, "float32")  # weights in the average so far
        due = ops.logical_and(after >= 0, after % every == 0)
        share = ops.where(due, 1.0 / (taken + 1.0), 0.0)
        share = ops.where(after < 0, 1.0, share)  # until then it follows the weights
        averages = self._model_variables_moving_average
        for variable, average in zip(trainable_variables, averages, strict=True):
            average.assign(average + ops.cast(share, average.dtype) * (variable - average))


_MADE: dict[type, type] = {}


def _scaled(kind: type[keras.optimizers.Optimizer]) -> Any:
    """A Keras optimizer's class with `Scaled` before it."""
    if kind not in _MADE:
        _MADE[kind] = type(f"Scaled{kind.__name__}", (Scaled, kind), {})
    return _MADE[kind]
