"""Optimizers and learning-rate schedules, from the section `optimizer` and the phases."""

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
from tfft.utils import keras_internals
from tfft.utils.errors import UserError, nearest


class ScheduleFreeAdamW(keras.optimizers.ScheduleFreeAdamW):
    """Keras' ScheduleFreeAdamW with the update of the paper.

    Keras 3.15 on TensorFlow reads z after overwriting it, so that its x is not the average of the
    z. Here: Defazio et al. 2024, "The Road Less Scheduled", equations 3 to 5, with weights
    c = 1 / t.
    """

    def update_step(self, gradient, variable, learning_rate):
        """Update one variable, which holds y."""
        index = self._get_variable_index(variable)
        z, second = self._momentums[index], self._velocities[index]
        rate, gradient = ops.cast(learning_rate, z.dtype), ops.cast(gradient, z.dtype)
        step = ops.cast(self.iterations + 1, z.dtype)  # t of the paper
        if self.warmup_steps:
            rate = rate * ops.minimum(step / self.warmup_steps, 1.0)
        second_new = self.beta_2 * second + (1 - self.beta_2) * ops.square(gradient)
        scale = ops.sqrt(second_new / (1 - ops.power(self.beta_2, step))) + self.epsilon
        z_new = z - rate * gradient / scale  # equation 4
        beta = self.beta_1
        # The optimizer stores y and z; x follows from y = (1 - beta) z + beta x.
        x = (ops.convert_to_tensor(variable) - (1 - beta) * z) / beta
        # Equation 5 with c = 1 / t.
        x_new = x + (z_new - x) / step
        self.assign(second, second_new)
        self.assign(variable, (1 - beta) * z_new + beta * x_new)
        self.assign(z, z_new)


class SharedBiasCorrection:
    """Mixin that computes Adam's bias-corrected rate once per step, not once per variable.

    The update is bit-identical to Keras' (Kingma & Ba 2015, "Adam", end of section 2) and its
    graph has about half the operations.
    """

    def update_step(self, gradient, variable, learning_rate):
        """Update one variable."""
        if self.amsgrad:  # AMSGrad has another update, which is left to Keras
            super().update_step(gradient, variable, learning_rate)
            return
        dtype, index = variable.dtype, self._get_variable_index(variable)
        first, second = self._momentums[index], self._velocities[index]
        # `_since` changes the count of steps, so variables that start later have a rate of their
        # own.
        rate = self.once(
            ("rate", id(learning_rate), self._since, dtype),
            lambda: self._bias_corrected(ops.cast(learning_rate, dtype), dtype),
        )
        gradient = tf.cast(gradient, dtype)
        # The order of the operations is Keras', for equality to the bit.
        self.assign_add(first, (gradient - first.value) * (1 - self.beta_1))
        self.assign_add(second, (tf.square(gradient) - second.value) * (1 - self.beta_2))
        self.assign_sub(variable, first.value * rate / (tf.sqrt(second.value) + self.epsilon))

    def _bias_corrected(self, learning_rate, dtype):
        step = ops.cast(self.iterations + 1, dtype)
        powers = [ops.power(ops.cast(beta, dtype), step) for beta in (self.beta_1, self.beta_2)]
        return learning_rate * ops.sqrt(1 - powers[1]) / (1 - powers[0])


class Adam(SharedBiasCorrection, keras.optimizers.Adam):
    """Keras' Adam with a shared bias correction."""


class AdamW(SharedBiasCorrection, keras.optimizers.AdamW):
    """Keras' AdamW with a shared bias correction."""


# `optimizer.name` without underscores -> Keras' optimizer of that name, or tfft's in its place.
_CLASSES: Mapping[str, type[keras.optimizers.Optimizer]] = {
    value.__name__.lower(): value
    for value in (*vars(keras.optimizers).values(), Adam, AdamW, ScheduleFreeAdamW)
    if isinstance(value, type)
}
# Fields of the section that are passed to the optimizers that take them.
_OPTIONAL_FIELDS = ("beta_1", "beta_2", "epsilon")


class WarmUpAndDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Learning-rate schedule: linear warm-up, then constant, linear, cosine or polynomial decay.

    The rate of step s (from 0) is that of transformers' schedulers: s / warm-up before the peak,
    then with t = (s - warm-up) / (total - warm-up): 1 - t for `linear`, (1 + cos(pi * t)) / 2 for
    `cosine`, (1 - t) ** power for `polynomial`, all from the peak to `end` times the peak.
    `slanted_triangular` (Howard & Ruder 2018, equation 3, ratio 1 / end) also begins at `end`.

    Args:
        peak: the highest rate.
        kind: `constant`, `linear`, `slanted_triangular`, `cosine` or `polynomial`.
        warmup: steps before the peak.
        total: steps of the schedule.
        end: the last rate, as a share of the peak.
        power: exponent of `polynomial`.
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
        """Return the rate of a step, float32."""
        step = ops.cast(step, "float32")
        # `max(1, ...)`: a schedule may be warm-up alone.
        progress = (step - self.warmup) / max(1, self.total - self.warmup)
        progress = ops.clip(progress, 0.0, 1.0)
        decay = {
            "constant": lambda: ops.ones_like(progress),
            "linear": lambda: 1.0 - progress,
            "slanted_triangular": lambda: 1.0 - progress,
            "cosine": lambda: 0.5 * (1.0 + ops.cos(np.pi * progress)),
            "polynomial": lambda: ops.power(1.0 - progress, self.power),
        }[self.kind]()
        if self.kind != "constant":
            decay = self.end + (1.0 - self.end) * decay
        warmup = step / max(1, self.warmup)
        if self.kind == "slanted_triangular":
            warmup = self.end + (1.0 - self.end) * warmup
        return self.peak * ops.where(step < self.warmup, warmup, decay)

    def get_config(self):
        """Return the arguments that rebuild the schedule."""
        names = ("peak", "kind", "warmup", "total", "end", "power")
        return {name: getattr(self, name) for name in names}


class RestartingSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Learning-rate schedule that runs several schedules one after another.

    Args:
        starts: first step of each schedule, ascending from 0.
        schedules: the schedules; each counts steps from its start.
    """

    def __init__(self, starts: Sequence[int], schedules: Sequence[WarmUpAndDecay]):
        super().__init__()
        self.starts, self.schedules = list(starts), list(schedules)

    def __call__(self, step):
        """Return the rate of a step, float32."""
        rate = self.schedules[0](step)
        for start, schedule in zip(self.starts[1:], self.schedules[1:], strict=True):
            local_step = ops.cast(step, "int32") - start
            # `maximum`: both branches are computed, and a negative step has no rate.
            rate = ops.where(local_step >= 0, schedule(ops.maximum(local_step, 0)), rate)
        return rate

    def get_config(self):
        """Return the arguments that rebuild the schedule."""
        return {"starts": self.starts, "schedules": [s.get_config() for s in self.schedules]}


def schedule(
    config: OptimizerConfig, training_schedule: TrainingSchedule, per_epoch: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Build the learning-rate schedule; it restarts in each phase that says so.

    Args:
        config: the section `optimizer`.
        training_schedule: the phases of the training.
        per_epoch: steps of an epoch, to resolve durations.
    """
    restarts = (
        [s for s in training_schedule.phases if s.restart_schedule and s.start]
        if len(training_schedule.phases) > 1
        else []
    )
    # Each schedule lasts until the next restart, with warm-up and decay over its own length.
    starts = [0, *(s.start for s in restarts)]
    peaks = [s.learning_rate for s in (training_schedule.phases[0], *restarts)]
    schedules = []
    for start, end, peak in zip(starts, [*starts[1:], training_schedule.total], peaks, strict=True):
        total = end - start
        schedules.append(
            WarmUpAndDecay(
                peak or config.learning_rate,
                config.schedule,
                min(config.warmup.steps(per_epoch, total), total),
                total,
                config.end_factor,
                config.power,
            )
        )
    return schedules[0] if len(schedules) == 1 else RestartingSchedule(starts, schedules)


def build(
    config: OptimizerConfig,
    training_schedule: TrainingSchedule,
    per_epoch: int,
    precision: str = "float32",
) -> keras.optimizers.Optimizer:
    """Build the optimizer, with the learning rates of the first phase's mask.

    Weight decay is decoupled (Loshchilov & Hutter 2019) and not applied to vectors: biases and
    norms. In mixed_float16 the loss is scaled dynamically (Micikevicius et al. 2018, section 3.2).

    Args:
        config: the section `optimizer`.
        training_schedule: the phases of the training.
        per_epoch: steps of an epoch, to resolve durations.
        precision: `distribute.precision`.

    Raises:
        UserError: the optimizer has no such option, or refuses a value.
    """
    optimizer_class = _CLASSES[config.name.replace("_", "")]
    # 1. Options of the section that this optimizer takes.
    accepted = inspect.signature(optimizer_class.__init__).parameters
    options = {n: getattr(config, n) for n in _OPTIONAL_FIELDS if n in accepted}
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
    # 2. What all optimizers have.
    options |= {
        "learning_rate": schedule(config, training_schedule, per_epoch),
        "global_clipnorm": config.clip_norm,
        "clipvalue": config.clip_value,
        # Keras' Adam with `weight_decay` would be AdamW. The L2 form is `regularization.l2`.
        "weight_decay": None if config.name == "adam" else config.weight_decay,
        # SWA uses the variables of Keras' moving average: they are saved, resumed and swapped
        # alike.
        "use_ema": config.ema is not None or swa is not None,
        # Keras' default; SWA does not read it.
        "ema_momentum": config.ema or 0.99,
    }
    try:
        optimizer = _scaled(optimizer_class)(**options)
    except (ValueError, TypeError) as error:
        raise UserError(f"optimizer: {config.name}: {' '.join(str(error).split())}") from None
    if swa is not None:
        total = training_schedule.total
        start = min(swa.start.steps(per_epoch, total), total)
        optimizer.swa = start, max(1, swa.every.steps(per_epoch, total))
    # 3. The rates of the first phase, and the loss scaler around it all.
    enter(optimizer, training_schedule, 0)
    if precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def enter(
    optimizer: keras.optimizers.Optimizer, training_schedule: TrainingSchedule, step: int
) -> None:
    """Set the learning rates of the phase of `step`.

    They are constants in the graph, so the train step must be traced again afterwards.
    """
    optimizer = inner(optimizer)
    optimizer.factors = dict(training_schedule.at(step).mask.learning_rates)
    optimizer.starts = dict(training_schedule.starts)


def inner(optimizer: Any) -> Any:
    """Return the optimizer within a loss scaler; any other optimizer unchanged."""
    return getattr(optimizer, "inner_optimizer", optimizer)


@contextmanager
def averaged(model: keras.Model) -> Iterator[None]:
    """Give the model its averaged weights within the context, if the optimizer has averages."""
    optimizer = inner(model.optimizer)
    # Before the first step the moving averages are zeros, not weights.
    averages = {} if ops.convert_to_numpy(optimizer.iterations) == 0 else _averages(optimizer)
    variables = keras_internals.trained_by(optimizer)
    # A copy: on a CPU the array may share the variable's memory.
    originals = {i: ops.convert_to_numpy(variables[i]).copy() for i in averages}
    for i, value in averages.items():
        variables[i].assign(value)
    try:
        yield
    finally:
        for i, value in originals.items():
            variables[i].assign(value)


def _averages(optimizer: Any) -> dict[int, np.ndarray]:
    """Return the averaged value of each variable, by its index in the optimizer."""
    if optimizer.use_ema:
        averages = enumerate(keras_internals.weight_averages(optimizer))
        return {i: ops.convert_to_numpy(average) for i, average in averages}
    if isinstance(optimizer, keras.optimizers.ScheduleFreeAdamW):
        # The variables hold the points at which gradients are computed, y = (1 - beta) z + beta x;
        # the average is x (Defazio et al. 2024, "The Road Less Scheduled", equations 3 to 5).
        beta = optimizer.beta_1
        points, momentums = (
            keras_internals.trained_by(optimizer),
            keras_internals.momentums(optimizer),
        )
        pairs = zip(points, momentums, strict=True)
        pairs = [(ops.convert_to_numpy(y), ops.convert_to_numpy(z)) for y, z in pairs]
        return {i: (y - (1 - beta) * z) / beta for i, (y, z) in enumerate(pairs)}
    return {}


class Scaled:
    """Mixin of the optimizers: learning rates per variable, later starts, no decay of vectors, SWA.

    The update is scaled, not the gradient, because Adam's normalisation would undo a factor on the
    gradient.

    Attributes:
        factors: variable path -> factor on the learning rate; default 1.
        starts: variable path -> step from which it is trainable; default 0.
        swa: first step and steps between two weights of stochastic weight averaging; None: off.
    """

    factors: Mapping[str, float] = {}
    starts: Mapping[str, int] = {}
    swa: tuple[int, int] | None = None
    _since = 0
    _shared: dict[Any, Any] | None = None  # results of `once` during an update

    @property
    def iterations(self):
        """Number of steps done; during an update, those since the variable became trainable.

        Adam's bias correction then counts from the step at which the moments of the variable were
        empty.
        """
        return super().iterations - self._since if self._since else super().iterations

    def apply(self, grads, trainable_variables=None):
        """Update the variables, with one computation of what is the same for all of them."""
        # Through `__dict__`, because Keras and TensorFlow would track an assigned attribute.
        self.__dict__["_shared"] = {}
        try:
            super().apply(grads, trainable_variables)
        finally:
            self.__dict__["_shared"] = None

    def once(self, key, compute):
        """Return `compute()`, computed once for each key within an update.

        The branches of a condition are separate graphs and cannot share tensors, so the key
        includes the graph.
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
        """Update one variable with its own learning rate and count of steps."""
        # `variable` may be a tf.Variable, which has no path, so look it up by its index.
        path = self._trainable_variables[self._get_variable_index(variable)].path
        # Set for the time of one update only: outside, `iterations` is the count of the run.
        self._since = self.starts.get(path, 0)
        try:
            factor = self.factors.get(path, 1.0)
            rate = self.once(("scaled", factor), lambda: learning_rate * factor)
            super().update_step(gradient, variable, rate)
        finally:
            self._since = 0

    def _use_weight_decay(self, variable):
        # Biases and the parameters of norms are vectors, kernels and tables are not.
        return len(variable.shape) > 1

    def _apply_weight_decay(self, variables):
        if self.weight_decay is None:
            return
        for variable in variables:
            if self._use_weight_decay(variable):
                factor, dtype = self.factors.get(variable.path, 1.0), variable.dtype
                # Decoupled decay at the variable's own rate, as a parameter group of PyTorch has
                # it.
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
        start, interval = self.swa
        elapsed = self._iterations + 1 - start  # steps since the start, this one included
        count = ops.cast(elapsed // interval, "float32")  # weights in the average so far
        due = ops.logical_and(elapsed >= 0, elapsed % interval == 0)
        share = ops.where(due, 1.0 / (count + 1.0), 0.0)
        share = ops.where(elapsed < 0, 1.0, share)  # before the start: equal to the weights
        averages = self._model_variables_moving_average
        for variable, average in zip(trainable_variables, averages, strict=True):
            average.assign(average + ops.cast(share, average.dtype) * (variable - average))


_SCALED_CLASSES: dict[type, type] = {}


def _scaled(optimizer_class: type[keras.optimizers.Optimizer]) -> Any:
    """Return a subclass of `Scaled` and a Keras optimizer; the same one for each call."""
    if optimizer_class not in _SCALED_CLASSES:
        name = f"Scaled{optimizer_class.__name__}"
        _SCALED_CLASSES[optimizer_class] = type(name, (Scaled, optimizer_class), {})
    return _SCALED_CLASSES[optimizer_class]
