"""The train step: right on one device, on several replicas, on several workers.

    micro-batches -> all-reduce -> clip -> apply -> average

Losses are weighted by what they average over (examples, or sample weights where the loss divides
by those), over all replicas and micro-batches, so a partial or uneven batch counts rightly. The
gradients are summed over the replicas before the optimizer sees them; each replica then makes the
same update of its own copy (`updates`). Metrics are summed over replicas and workers.

Everything public of `keras.Model` keeps working: `fit`, `evaluate`, `predict`, callbacks, any
Keras optimizer.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfft.model import injection, replica_optimizer, seeds

TIMED = 8  # steps between two of which the wait for input is timed, at most


@dataclass
class StepReport:
    """What the last call of the train function did.

    Attributes:
        steps: optimizer steps that were run, skipped ones included.
        loss: of the last batch, over all replicas.
        skipped: steps whose loss or gradient was not finite: nothing was changed by them.
        wait: seconds in which the step waited for its input.
    """

    steps: int = 0
    loss: float = 0.0
    skipped: int = 0
    wait: float = 0.0


class Model(keras.Model):
    """A `keras.Model` with tfft's train step.

    Attributes:
        micro_batch: rows that a replica works on at once; a larger batch is cut into such pieces,
            whose gradients are added up. None: no cutting. It may be changed between steps; from
            or to None, `make_train_function(force=True)` must follow.
        xla: whether the gradients are compiled; Keras' own `jit_compile` does too, but it refuses
            while op determinism is on.
        again: how often a step failed and left something behind that bears the names of its graph;
            a function made afterwards has names of its own.
        dry: the steps compute everything and change no weight and no optimizer variable.
        report: what the last call of the train function did.
        above: the part of the model above its cached prefix (`prefix.ModelSplit`), or None. The model then
            takes the stored tensors in place of the tokens, wherever it takes inputs.
        consistency: gives the loss of a batch in place of the plain one (`regularizers.r_drop`).
        adversary: makes several passes over a batch (`regularizers.adversarial`).
        penalties: what is added to the gradients (`regularizers.penalties`).

    All of these are read while a function is traced.
    """

    micro_batch: int | None = None
    xla: bool = False
    again: int = 0
    dry: bool = False
    consistency: Any = None
    adversary: Any = None
    _share: Any = 1.0  # of the rows at hand in the batch, while a step is traced

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.report = StepReport()
        # Not attributes that Keras tracks: the layers are the model's own already.
        self.__dict__["above"] = None
        self.__dict__["penalties"] = []
        self.__dict__["_forward"] = {}  # names of inputs -> the function that takes them

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model`'s; the inputs may be those of `above`."""
        inputs = args[0] if args else None
        above = self.above
        if above is not None and isinstance(inputs, dict) and set(inputs) >= set(above.input):
            return above({name: inputs[name] for name in above.input}, *args[1:], **kwargs)
        return super().__call__(*args, **kwargs)

    def compile(self, *args: Any, micro_batch: int | None = None, **kwargs: Any) -> None:
        """As `keras.Model.compile`; `micro_batch` as in the class."""
        super().compile(*args, **kwargs)
        self.micro_batch = micro_batch
        if self.optimizer is not None:
            replica_optimizer.make_local(self.optimizer)

    def start_above(self, above: keras.Model | None) -> None:
        """Let the model take the inputs of its upper part, or (None) its own alone."""
        self.__dict__["above"] = above
        self.forget_functions()

    def forget_functions(self) -> None:
        """Have every function traced anew: the layers compute something else now."""
        self.train_function = self.test_function = self.predict_function = None
        self._forward.clear()

    @contextmanager
    def merged(self) -> Iterator[list[str]]:
        """As `inject.merged`, with functions of its own."""
        names = ("train_function", "test_function", "predict_function")
        kept, forward = {name: getattr(self, name) for name in names}, dict(self._forward)
        try:
            with injection.merged(self) as layers:
                self.forget_functions()
                yield layers
        finally:  # those of before are right again
            self.forget_functions()
            self._forward.update(forward)
            for name, function in kept.items():
                setattr(self, name, function)

    # --- the step, in a replica ---

    def _replica_step(
        self, data: Any, dry: tf.Tensor, micro: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """One optimizer step; the loss over all replicas, and whether all was finite."""
        x, y, weight = keras.utils.unpack_x_y_sample_weight(_without_optionals(data))
        total = self._all_reduce([self._units(x, weight)])[0]
        with seeds.of_replica(self):
            loss, gradients = self._micro_batches(x, y, weight, total, micro)
        loss, *gradients = self._all_reduce([loss, *gradients])
        gradients = self._penalised(gradients)
        norm, finite = replica_optimizer.global_norm(gradients), tf.math.is_finite(loss)
        if not isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            # A loss scaler looks at the gradients itself, and lowers the scale.
            finite &= tf.math.is_finite(norm)
        tf.cond(finite & ~dry, lambda: self._apply(gradients, norm), lambda: tf.constant(False))
        return loss, finite

    def _apply(self, gradients: list[tf.Tensor], norm: tf.Tensor) -> tf.Tensor:
        with replica_optimizer.norm_known(self.optimizer, gradients, norm):
            self.optimizer.apply(gradients, self.trainable_variables)
        return tf.constant(True)

    def _micro_batches(
        self, x: Any, y: Any, weight: Any, total: tf.Tensor, size: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """This replica's share of the loss and of the gradients, summed over micro-batches."""
        compute = self._gradient_function()
        if self.micro_batch is None:
            return compute(x, y, weight, total)
        rows = _rows(x)

        def body(start: tf.Tensor, loss: tf.Tensor, gradients: list[tf.Tensor]) -> Any:
            part = tree.map_structure(
                lambda t: None if t is None else t[start : start + size], (x, y, weight)
            )
            more, found = compute(*part, total)
            return start + size, loss + more, [a + b for a, b in zip(gradients, found, strict=True)]

        zeros = [tf.zeros(v.shape, v.dtype) for v in self.trainable_variables]
        # At least one turn: a replica without a row still gives a gradient of zeros.
        _, loss, gradients = tf.while_loop(
            lambda start, *_: (start < rows) | (start == 0),
            body,
            (tf.constant(0), tf.constant(0.0), zeros),
            parallel_iterations=1,
        )
        return loss, gradients

    def _gradient_function(self) -> Callable[..., tuple[tf.Tensor, list[tf.Tensor]]]:
        # One for each replica: compiled code holds the variables of the replica it was traced in.
        if self.run_eagerly or not (self.jit_compile or self.xla):
            return self._gradients
        return tf.function(
            self._gradients, jit_compile=True, reduce_retracing=True, autograph=False
        )

    def _gradients(
        self, x: Any, y: Any, weight: Any, total: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """The share in the loss and in the gradients of some rows, dense."""
        variables = [v.value for v in self.trainable_variables]

        def loss_of() -> tuple[tf.Tensor, tf.Tensor]:
            return self._loss_of(x, y, weight, total)

        if self.adversary is not None:
            loss, gradients, y_pred = self.adversary.gradients(self, loss_of, variables)
        else:
            # Watching what moves, and that alone, ends the backward pass at the lowest of it.
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(variables)
                loss, y_pred = loss_of()
                scaled = self.optimizer.scale_loss(loss)
            gradients = tape.gradient(
                scaled, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
        if self.metrics:
            self._update_metrics(x, y, y_pred, weight, loss, total)
        # Dense: a sparse gradient holds a token that comes twice as two rows, which Keras' clipping
        # and the second moment of its Adam take for two gradients.
        return loss, [tf.convert_to_tensor(g) for g in gradients]

    def _loss_of(
        self, x: Any, y: Any, weight: Any, total: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The share of some rows in the loss, and the output for them."""
        if self.consistency is not None:
            return self.consistency.loss(self, x, y, weight, total)
        y_pred = self(x, training=True)
        return self._share_of_loss(x, y, y_pred, weight, total), y_pred

    def _penalised(self, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        """The gradients with those of the penalties, scaled as they are."""
        for penalty in self.penalties:
            for i, variable in enumerate(self.trainable_variables):
                more = penalty(variable.path, tf.convert_to_tensor(variable.value))
                if more is not None:
                    gradients[i] = gradients[i] + self.optimizer.scale_loss(more)
        return gradients

    def _share_of_loss(
        self, x: Any, y: Any, y_pred: Any, weight: Any, total: tf.Tensor, training: bool = True
    ) -> tf.Tensor:
        """The part that these rows have in the loss of the whole batch, over all replicas."""
        share = tf.math.divide_no_nan(self._units(x, weight), total)
        self._share = share
        loss = self._compute_loss(x, y, y_pred, weight, training=training)
        if self._sums_loss():
            return loss
        return _nothing_of_nothing(loss * _replicas() * share, share)

    def _aggregate_additional_loss(self, loss: tf.Tensor) -> tf.Tensor:
        # Keras' own divides by the replicas, as it does every mean; a sum is not divided, so there
        # the regularisation must be.
        if self._sums_loss():
            return tf.reduce_sum(loss) * self._share
        return super()._aggregate_additional_loss(loss)

    def _units(self, x: Any, weight: Any) -> tf.Tensor:
        """What the loss is an average over: sample weights where it divides by them, else rows."""
        if weight is not None and _reductions(self.loss) == {"mean_with_sample_weight"}:
            return tf.reduce_sum(tf.cast(weight, tf.float32))
        return tf.cast(_rows(x), tf.float32)

    def _sums_loss(self) -> bool:
        return _reductions(self.loss) == {"sum"}

    def _update_metrics(
        self, x: Any, y: Any, y_pred: Any, weight: Any, loss: tf.Tensor, total: tf.Tensor
    ) -> None:
        share = self._share
        mean = loss if self._sums_loss() else tf.math.divide_no_nan(loss, share)
        finite = tf.math.is_finite(mean)  # a batch that is left out leaves the mean alone too
        units = tf.where(finite, share * total, 0.0)
        self._loss_tracker.update_state(tf.where(finite, mean, 0.0), sample_weight=units)
        self.compute_metrics(x, y, y_pred, weight)

    def _all_reduce(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync == 1:
            return tensors
        return list(context.all_reduce(tf.distribute.ReduceOp.SUM, tensors))

    # --- evaluation, in a replica ---

    def _replica_test(self, data: Any, *_: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        x, y, weight = keras.utils.unpack_x_y_sample_weight(_without_optionals(data))
        y_pred = self(x, training=False)
        units = self._units(x, weight)
        loss = self._share_of_loss(x, y, y_pred, weight, units, training=False)
        self._update_metrics(x, y, y_pred, weight, loss, units)
        return loss, tf.constant(True)

    # --- what Keras' loops call ---

    def make_train_function(self, force: bool = False) -> Any:
        """The function that `fit` calls for every `steps_per_execution` batches."""
        if self.train_function is None or force:
            if not self.optimizer.built:
                with self.distribute_strategy.scope():
                    self.optimizer.build(self.trainable_variables)
            self.train_function = self._loop(self._replica_step)
        return self.train_function

    def make_test_function(self, force: bool = False) -> Any:
        """The function that `evaluate` calls for every `steps_per_execution` batches."""
        if self.test_function is None or force:
            self.test_function = self._loop(self._replica_test)
        return self.test_function

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        # Keras takes a batch from the data and reduces it over the replicas, which fails for bool
        # inputs and with several workers. The shapes are all that is needed.
        if self._distribute_strategy is None:
            return
        if iterator is not None:
            data_batch = tree.map_structure(_one_spec, iterator._distributed_dataset.element_spec)
        with self.distribute_strategy.scope():
            self._symbolic_build(data_batch=data_batch)

    def predict_on_batch(self, x: Any) -> Any:
        """As `keras.Model`'s, the rows shared among this worker's replicas; no worker waits for
        another."""
        strategy = self.distribute_strategy
        if strategy.num_replicas_in_sync == 1:
            return self._predict_on_one(x)
        local = len(strategy.extended.worker_devices)
        parts = [
            tree.map_structure(lambda t, at=at: np.array_split(np.asarray(t), local)[at], x)
            for at in range(local)
        ]
        shared = strategy.experimental_distribute_values_from_function(
            lambda context: parts[context.replica_id_in_sync_group % local]
        )
        if "" not in self._forward:
            self._forward[""] = tf.function(
                lambda values: strategy.run(self, args=(values,), kwargs={"training": False}),
                reduce_retracing=True,
                autograph=False,
            )
        results = strategy.experimental_local_results(self._forward[""](shared))
        return tree.map_structure(lambda *ts: np.concatenate([t.numpy() for t in ts]), *results)

    def _predict_on_one(self, x: Any) -> Any:
        """On one replica, by a function that is traced once for all widths and numbers of rows."""
        takers = [model for model in (self.above, self) if _takes(model, x)]
        if not takers or self.run_eagerly or self.jit_compile:
            return super().predict_on_batch(x)
        inputs = takers[0].input
        key = " ".join(sorted(inputs))
        if key not in self._forward:
            specs = {n: tf.TensorSpec(t.shape, t.dtype, name=n) for n, t in inputs.items()}
            self._forward[key] = tf.function(
                lambda values: self(values, training=False), [specs], autograph=False
            )
        given = {n: keras.ops.convert_to_tensor(x[n], t.dtype) for n, t in inputs.items()}
        return tree.map_structure(lambda t: t.numpy(), self._forward[key](given))

    def _loop(self, replica_function: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
        """`replica_function` over the batches of an iterator, on every replica."""
        strategy = self.distribute_strategy

        def one(data: Any, *flags: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            loss, finite = strategy.run(replica_function, args=(data, *flags))
            # All replicas hold the same.
            first = strategy.experimental_local_results
            return first(loss)[0], first(finite)[0]

        several = _looped(
            one, self.get_metrics_result, f"again_{self.again}" if self.again else None
        )
        single = _once(one, self.get_metrics_result)
        if not self.run_eagerly:
            several = tf.function(several, reduce_retracing=True, autograph=False)
            single = tf.function(single, reduce_retracing=True, autograph=False)

        def function(iterator: Any, limit: int | None = None) -> dict[str, Any]:
            limit = self.steps_per_execution if limit is None else limit
            flags = tf.constant(self.dry), tf.constant(self.micro_batch or 0)
            if hasattr(iterator, "get_next_as_optional"):
                steps, _, loss, bad, wait, logs = several(iterator, tf.constant(limit), *flags)
                if int(steps) == 0:
                    raise StopIteration
                self.report = StepReport(int(steps), float(loss), int(bad), float(wait))
                return logs
            self.report = StepReport()
            logs: dict[str, Any] = {}
            for data in islice(iterator, limit):
                loss, finite, logs = single(data, *flags)
                report = self.report
                report.steps, report.loss = report.steps + 1, float(loss)
                report.skipped += not bool(finite)
            return logs

        return function


def _takes(model: Any, x: Any) -> bool:
    """Whether a model's inputs are those of a batch, by name."""
    inputs = getattr(model, "input", None)
    return isinstance(x, dict) and isinstance(inputs, dict) and set(x) == set(inputs)


def _once(one: Callable[..., Any], result: Callable[[], Any]) -> Callable[..., Any]:
    """One batch, handed over as it is."""

    def single(data: Any, *flags: tf.Tensor) -> tuple[Any, ...]:
        loss, finite = one(data, *flags)
        return loss, finite, result()

    return single


def _looped(
    one: Callable[..., Any], result: Callable[[], Any], name: str | None
) -> Callable[..., Any]:
    """At most `limit` batches of an iterator, without going back to Python between them."""

    def several(iterator: Any, limit: tf.Tensor, *flags: tf.Tensor) -> tuple[Any, ...]:
        # Asking for the time costs more than a small step: of many, every eighth is timed.
        every = tf.minimum(limit, TIMED)

        def timed() -> tuple[Any, tf.Tensor]:
            began = _now()
            data = iterator.get_next_as_optional()
            with tf.control_dependencies([data.has_value()]):
                return data, (_now() - began) * tf.cast(every, tf.float64)

        def untimed() -> tuple[Any, tf.Tensor]:
            return iterator.get_next_as_optional(), tf.constant(0.0, tf.float64)

        def body(count: tf.Tensor, _: tf.Tensor, loss: Any, bad: Any, wait: Any) -> Any:
            data, waited = tf.cond(count % every == 0, timed, untimed)
            more = data.has_value()
            wait += waited

            def step() -> tuple[tf.Tensor, ...]:
                found, finite = one(data.get_value(), *flags)
                return count + 1, found, bad + tf.cast(~finite, tf.int32)

            done, loss, bad = tf.cond(more, step, lambda: (count, loss, bad))
            return done, more, loss, bad, wait

        zero = tf.constant(0)
        state = (zero, tf.constant(True), tf.constant(0.0), zero, tf.constant(0.0, tf.float64))
        out = tf.while_loop(
            lambda count, more, *_: (count < limit) & more,
            body,
            state,
            parallel_iterations=1,
            name=name,
        )
        return *out, result()

    return several


def _now() -> tf.Tensor:
    """Seconds, when the graph gets here; `tf.timestamp` refuses to run deterministically."""
    return tf.ensure_shape(tf.numpy_function(time.perf_counter, [], tf.float64), [])


def _rows(x: Any) -> tf.Tensor:
    return tf.shape(next(t for t in tree.flatten(x) if t is not None))[0]


def _replicas() -> int:
    context = tf.distribute.get_replica_context()
    return context.num_replicas_in_sync if context else 1


def _reductions(loss: Any) -> set[str]:
    """How the losses given to `compile` reduce; names stand for Keras' default."""
    return {getattr(one, "reduction", "sum_over_batch_size") for one in tree.flatten(loss)}


def _nothing_of_nothing(loss: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """0, and no gradient, where a replica has no row: the mean over none is not a number."""
    return tf.where(share > 0, loss, tf.zeros_like(loss))


def _without_optionals(data: Any) -> Any:
    return tree.map_structure(
        lambda t: None if isinstance(t, tf.experimental.Optional) else t, data
    )


def _one_spec(spec: Any) -> Any:
    """What one replica gets, of the spec for all of them."""
    return getattr(spec, "_value_specs", (spec,))[0]
