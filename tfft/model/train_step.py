"""The train step, equal on one device, on several replicas and on several workers.

    micro-batches -> all-reduce -> clip -> apply -> average

A loss is a sum divided by a count: of examples, of tokens, or a sum of sample weights (`losses`).
The counts are those of all replicas and micro-batches, so partial and uneven batches give the same
mean as one device would. Gradients are summed over the replicas before the optimizer sees them;
each replica then applies the same update to its copy of the variables (`replica_optimizer`).
Metrics are summed over replicas and workers.

The public methods of `keras.Model` work as usual: `fit`, `evaluate`, `predict`, callbacks, and
every Keras optimizer.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfft.model import gathered, graph_loop, injection, losses, replica_optimizer, seeds
from tfft.model.step_options import StepOptions, StepReport
from tfft.utils import keras_internals

STEP_LOSSES = {"rows": losses.TermLoss, "batch": gathered.GatheredLoss}  # by `Loss.scope`


class Model(keras.Model):
    """A `keras.Model` with tfft's train step.

    Attributes:
        options: the `StepOptions` of the train step; `configure` changes them.
        step_loss: the loss as sums and counts; None before `compile`.
        report: result of the last call of the train function.
    """

    options: StepOptions
    step_loss: losses.StepLoss | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.report = StepReport()
        # Past Keras' attribute tracking: this model already has the layers of `upper_part`.
        self.__dict__["options"] = StepOptions()
        self.__dict__["_forward"] = {}  # input names -> forward function of `predict_on_batch`

    def configure(self, **changes: Any) -> None:
        """Change options of the train step; functions that were traced with others are discarded.

        Args:
            **changes: attributes of `StepOptions`.
        """
        options = replace(self.options, **changes)
        if options.upper_part is not self.options.upper_part:
            self.reset_functions()
        elif not options.traces_like(self.options):
            self.train_function = None
        self.__dict__["options"] = options

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model like `keras.Model`; the inputs may be those of `upper_part`."""
        inputs = args[0] if args else None
        upper = self.options.upper_part
        if upper is not None and isinstance(inputs, dict) and set(inputs) >= set(upper.input):
            return upper({name: inputs[name] for name in upper.input}, *args[1:], **kwargs)
        return super().__call__(*args, **kwargs)

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        *args: Any,
        micro_batch: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Compile like `keras.Model.compile`.

        Args:
            optimizer: as of `keras.Model.compile`.
            loss: as of `keras.Model.compile`, or a `losses.Loss`.
            *args: as of `keras.Model.compile`.
            micro_batch: rows per micro-batch of a replica; None does not split batches.
            **kwargs: as of `keras.Model.compile`.

        Raises:
            ValueError: `loss_weights` beside a `losses.Loss`, which has weights of its own, or a
                `Loss` of an unknown scope.
        """
        if isinstance(loss, losses.Loss):
            if args or kwargs.get("loss_weights") is not None:
                raise ValueError("Give weights in the attribute `weights` of the `Loss`")
            if loss.scope not in STEP_LOSSES:
                raise ValueError(f"`scope` must be rows or batch. Received: {loss.scope!r}")
            super().compile(optimizer, None, **kwargs)
            keras_internals.forget_loss(self)  # of an earlier `compile`
            self.loss, step_loss = loss, STEP_LOSSES[loss.scope](self, loss)
        else:
            super().compile(optimizer, loss, *args, **kwargs)
            step_loss = losses.CompiledLoss(self, self._loss_tracker)
        self.__dict__["step_loss"] = step_loss
        self.configure(micro_batch=micro_batch)
        if self.optimizer is not None:
            replica_optimizer.make_local(self.optimizer)

    def reset_functions(self) -> None:
        """Discard the traced functions, after a change of what the layers compute."""
        self.train_function = self.test_function = self.predict_function = None
        self._forward.clear()

    @contextmanager
    def merged(self) -> Iterator[list[str]]:
        """Merge adapters as `injection.merged` does, with separate traced functions inside.

        Yields the paths of the merged layers.
        """
        names = ("train_function", "test_function", "predict_function")
        functions, forward = {name: getattr(self, name) for name in names}, dict(self._forward)
        try:
            with injection.merged(self) as layers:
                self.reset_functions()
                yield layers
        finally:  # the previous functions are valid again, and need no second trace
            self.reset_functions()
            self._forward.update(forward)
            for name, function in functions.items():
                setattr(self, name, function)

    # --- the step, in a replica ---

    def _replica_step(
        self, options: StepOptions, data: Any, dry_run: tf.Tensor, micro_batch: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Run one optimizer step in a replica.

        Args:
            options: those of the trace.
            data: one batch: inputs, targets and perhaps sample weights.
            dry_run: whether to leave weights and optimizer unchanged, bool [].
            micro_batch: rows per micro-batch, int32 [].

        Returns:
            The loss over all replicas, float32 [], and whether loss and gradients are finite,
            bool [].
        """
        x, y, weight = keras.utils.unpack_x_y_sample_weight(_without_optionals(data))
        # Reduced before the forward pass, since each micro-batch needs its share of the total.
        totals = self._totals(x, y, weight)
        if isinstance(self.step_loss, gathered.GatheredLoss):
            loss, gradients = gathered.gradients(self, options, x, y, weight, totals, micro_batch)
        else:
            loss, gradients = self._summed_gradients(options, x, y, weight, totals, micro_batch)
        # One collective for all: every replica now holds the gradient of the global batch.
        loss, *gradients = self._all_reduce([loss, *gradients])
        # After the sum: a penalty depends on the weights alone and counts once, not per replica.
        gradients = self._add_penalties(options.penalties, gradients)
        norm, finite = replica_optimizer.global_norm(gradients), tf.math.is_finite(loss)
        if not isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            # A loss scaler must see gradients that are not finite: it skips the step and lowers
            # its scale.
            finite &= tf.math.is_finite(norm)
        # `dry_run` is a tensor, so a dry run needs no trace of its own.
        tf.cond(finite & ~dry_run, lambda: self._apply(gradients, norm), lambda: tf.constant(False))
        return loss, finite

    def _apply(self, gradients: list[tf.Tensor], norm: tf.Tensor) -> tf.Tensor:
        with replica_optimizer.known_norm(self.optimizer, gradients, norm):
            self.optimizer.apply(gradients, self.trainable_variables)
        return tf.constant(True)

    def _summed_gradients(
        self,
        options: StepOptions,
        x: Any,
        y: Any,
        weight: Any,
        totals: losses.Totals,
        micro_batch: tf.Tensor,
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Return this replica's share of loss and gradients."""
        with seeds.fold_in_replica(self):
            compute = self._gradient_function(options)
            if options.micro_batch is None:
                return compute(x, y, weight, totals)
            return self._micro_batches(compute, x, y, weight, totals, micro_batch)

    def _micro_batches(
        self,
        compute: Callable[..., tuple[tf.Tensor, list[tf.Tensor]]],
        x: Any,
        y: Any,
        weight: Any,
        totals: losses.Totals,
        size: tf.Tensor,
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Return this replica's share of loss and gradients, summed over micro-batches."""
        num_rows = tf.cast(losses.num_rows(x), tf.int32)

        def body(start: tf.Tensor, loss: tf.Tensor, gradients: list[tf.Tensor]) -> Any:
            micro_batch = tree.map_structure(
                lambda t: None if t is None else t[start : start + size], (x, y, weight)
            )
            loss_part, gradient_parts = compute(*micro_batch, totals)
            sums = [a + b for a, b in zip(gradients, gradient_parts, strict=True)]
            return start + size, loss + loss_part, sums

        # A loop in the graph and not in Python: one copy of the model's graph for any number of
        # micro-batches.
        zeros = [tf.zeros(v.shape, v.dtype) for v in self.trainable_variables]
        # At least one iteration: a replica without rows must still return gradients, of zeros.
        _, loss, gradients = tf.while_loop(
            lambda start, *_: (start < num_rows) | (start == 0),
            body,
            (tf.constant(0), tf.constant(0.0), zeros),
            # Micro-batches in parallel would need the memory that they are meant to save.
            parallel_iterations=1,
        )
        return loss, gradients

    def _gradient_function(
        self, options: StepOptions
    ) -> Callable[..., tuple[tf.Tensor, list[tf.Tensor]]]:
        compute = partial(self.gradients, options)
        # One function per replica: compiled code holds the variables of the replica in which it
        # was traced.
        if not self.uses_xla(options):
            return compute
        return tf.function(compute, jit_compile=True, reduce_retracing=True, autograph=False)

    def uses_xla(self, options: StepOptions) -> bool:
        """Return whether XLA compiles the gradient computation."""
        return not self.run_eagerly and bool(self.jit_compile or options.jit_compile)

    def gradients(
        self, options: StepOptions, x: Any, y: Any, weight: Any, totals: losses.Totals
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Return the share of some rows in the loss and in the gradients, as dense tensors.

        Args:
            options: those of the trace.
            x: inputs of the rows.
            y: targets of the rows.
            weight: sample weights of the rows, or None.
            totals: counts of the global batch (`StepLoss.counts`).
        """
        variables = [v.value for v in self.trainable_variables]

        def compute_loss() -> tuple[tf.Tensor, tf.Tensor]:
            if options.consistency is not None:
                return options.consistency.loss(self, x, y, weight, totals)
            y_pred = self(x, training=True)
            return self.loss_share(x, y, y_pred, weight, totals), y_pred

        if options.adversary is not None:
            loss, gradients, y_pred = options.adversary.gradients(self, compute_loss, variables)
        else:
            # With only trainable variables watched, the backward pass ends at the lowest of them.
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(variables)
                loss, y_pred = compute_loss()
                # Inside the tape. The optimizer divides the gradients again, after checking them.
                scaled = self.optimizer.scale_loss(loss)
            gradients = tape.gradient(
                scaled, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
        self.update_metrics(x, y, y_pred, weight, loss, totals)
        # A sparse gradient holds a token that occurs twice as two rows. Keras' clipping and the
        # second moment of its Adam would treat them as two gradients, so they are summed here.
        return loss, [tf.convert_to_tensor(g) for g in gradients]

    def _add_penalties(
        self,
        penalties: Sequence[Callable[[str, tf.Tensor], Any]],
        gradients: list[tf.Tensor],
    ) -> list[tf.Tensor]:
        """Add the gradients of the penalties, multiplied by the loss scale like the others."""
        for penalty in penalties:
            for i, variable in enumerate(self.trainable_variables):
                term = penalty(variable.path, tf.convert_to_tensor(variable.value))
                if term is not None:
                    gradients[i] = gradients[i] + self.optimizer.scale_loss(term)
        return gradients

    def loss_share(
        self,
        x: Any,
        y: Any,
        y_pred: Any,
        weight: Any,
        totals: losses.Totals,
        training: bool = True,
    ) -> tf.Tensor:
        """Return the summand that these rows contribute to the loss of the global batch.

        Args:
            x: inputs of the rows.
            y: targets of the rows.
            y_pred: outputs of the rows.
            weight: sample weights of the rows, or None.
            totals: counts of the global batch.
            training: whether losses of layers are those of training mode.
        """
        return self.step_loss.share(x, y, y_pred, weight, totals, training)

    def _aggregate_additional_loss(self, loss: tf.Tensor) -> tf.Tensor:
        step_loss, additional = self.step_loss, None
        if isinstance(step_loss, losses.CompiledLoss):
            additional = step_loss.additional(loss)
        return super()._aggregate_additional_loss(loss) if additional is None else additional

    def update_metrics(
        self, x: Any, y: Any, y_pred: Any, weight: Any, loss: tf.Tensor, totals: losses.Totals
    ) -> None:
        """Update the metrics with some rows; the arguments are those of `loss_share`."""
        self.step_loss.track(x, y, y_pred, weight, loss, totals)
        self.compute_metrics(x, y, y_pred, weight)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The mean loss, that of each of its terms, and the metrics of `compile`."""
        metrics = super().metrics
        if not isinstance(self.step_loss, losses.TermLoss):
            return metrics
        return [*self.step_loss.metrics, *(m for m in metrics if m is not self._loss_tracker)]

    def _totals(self, x: Any, y: Any, weight: Any) -> losses.Totals:
        """Return the counts of the global batch."""
        counts = self.step_loss.counts(x, y, weight)
        return dict(zip(counts, self._all_reduce(list(counts.values())), strict=True))

    def _all_reduce(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync == 1:
            return tensors
        return list(context.all_reduce(tf.distribute.ReduceOp.SUM, tensors))

    # --- evaluation, in a replica ---

    def _replica_test(self, data: Any, *_: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        x, y, weight = keras.utils.unpack_x_y_sample_weight(_without_optionals(data))
        y_pred = self(x, training=False)
        totals = self._totals(x, y, weight)
        loss = self.loss_share(x, y, y_pred, weight, totals, training=False)
        self.update_metrics(x, y, y_pred, weight, loss, totals)
        return loss, tf.constant(True)

    # --- what Keras' loops call ---

    def make_train_function(self, force: bool = False) -> Any:
        """Build the function that `fit` calls for every `steps_per_execution` batches."""
        if self.train_function is None or force:
            if not self.optimizer.built:
                with self.distribute_strategy.scope():
                    # Built while tracing, ScheduleFreeAdamW would reset its z in every step.
                    self.optimizer.build(self.trainable_variables)
            self.train_function = self._loop(partial(self._replica_step, self.options))
        return self.train_function

    def make_test_function(self, force: bool = False) -> Any:
        """Build the function that `evaluate` calls for every `steps_per_execution` batches."""
        if self.test_function is None or force:
            self.test_function = self._loop(self._replica_test)
        return self.test_function

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        # Keras takes a batch from the data and reduces it over the replicas, which fails for bool
        # inputs and with several workers. Building needs the shapes only.
        if self._distribute_strategy is None:
            return
        if iterator is not None:
            data_batch = keras_internals.replica_specs(iterator)
        with self.distribute_strategy.scope():
            self._symbolic_build(data_batch=data_batch)

    def predict_on_batch(self, x: Any) -> Any:
        """Predict like `keras.Model.predict_on_batch`, with the rows split over the replicas.

        Only the replicas of this worker take part, so workers may call it independently.
        """
        strategy = self.distribute_strategy
        if strategy.num_replicas_in_sync == 1:
            return self._predict_on_one_replica(x)
        num_local = len(strategy.extended.worker_devices)
        parts = [
            tree.map_structure(lambda t, i=i: np.array_split(np.asarray(t), num_local)[i], x)
            for i in range(num_local)
        ]
        # The index within this worker: replica ids count over all workers.
        distributed = strategy.experimental_distribute_values_from_function(
            lambda context: parts[context.replica_id_in_sync_group % num_local]
        )
        if "" not in self._forward:
            self._forward[""] = tf.function(
                lambda values: strategy.run(self, args=(values,), kwargs={"training": False}),
                reduce_retracing=True,
                autograph=False,
            )
        results = strategy.experimental_local_results(self._forward[""](distributed))
        return tree.map_structure(lambda *ts: np.concatenate([t.numpy() for t in ts]), *results)

    def _predict_on_one_replica(self, x: Any) -> Any:
        """Predict on one replica, with one trace for all batch sizes and sequence lengths."""
        models = [model for model in (self.options.upper_part, self) if _accepts(model, x)]
        if not models or self.run_eagerly or self.jit_compile:
            return super().predict_on_batch(x)
        inputs = models[0].input
        # One function for the full inputs and one for those of `upper_part`.
        key = " ".join(sorted(inputs))
        if key not in self._forward:
            specs = {n: tf.TensorSpec(t.shape, t.dtype, name=n) for n, t in inputs.items()}
            self._forward[key] = tf.function(
                lambda values: self(values, training=False), [specs], autograph=False
            )
        tensors = {n: keras.ops.convert_to_tensor(x[n], t.dtype) for n, t in inputs.items()}
        return tree.map_structure(lambda t: t.numpy(), self._forward[key](tensors))

    def _loop(self, replica_function: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
        """Build the function that runs `replica_function` on every replica, batch after batch.

        The result takes an iterator, at most how many of its batches to consume, and whether the
        steps compute everything but update no weight and no optimizer variable (`dry_run`). It
        returns the metrics, and sets `report`.
        """
        strategy = self.distribute_strategy

        def run_batch(data: Any, *flags: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            loss, finite = strategy.run(replica_function, args=(data, *flags))
            # The values are all-reduced, so those of the first replica are everyone's.
            local_results = strategy.experimental_local_results
            return local_results(loss)[0], local_results(finite)[0]

        attempts = self.options.failed_attempts
        name = f"retry_{attempts}" if attempts else None
        run_batches = graph_loop.loop_in_graph(run_batch, self.get_metrics_result, name)
        run_one = graph_loop.with_metrics(run_batch, self.get_metrics_result)
        if not self.run_eagerly:
            run_batches = tf.function(run_batches, reduce_retracing=True, autograph=False)
            run_one = tf.function(run_one, reduce_retracing=True, autograph=False)

        def function(
            iterator: Any, limit: int | None = None, dry_run: bool = False
        ) -> dict[str, Any]:
            limit = self.steps_per_execution if limit is None else limit
            # Tensors: each Python value would be traced on its own.
            flags = tf.constant(dry_run), tf.constant(self.options.micro_batch or 0)
            # 1. Iterators of `tf.data` and of strategies: all steps in one graph call.
            if hasattr(iterator, "get_next_as_optional"):
                steps, _, loss, skipped, wait, logs = run_batches(
                    iterator, tf.constant(limit), *flags
                )
                # As Keras' loops expect it at the end of the data.
                if int(steps) == 0:
                    raise StopIteration
                self.report = StepReport(int(steps), float(loss), int(skipped), float(wait))
                return logs
            # 2. Python iterators (`train_on_batch`, eager mode): one call a step.
            self.report = StepReport()
            logs: dict[str, Any] = {}
            for data in islice(iterator, limit):
                loss, finite, logs = run_one(data, *flags)
                report = self.report
                report.steps, report.loss = report.steps + 1, float(loss)
                report.skipped += not bool(finite)
            return logs

        return function


def _accepts(model: Any, x: Any) -> bool:
    """Return whether the input names of a model are those of a batch."""
    inputs = getattr(model, "input", None)
    return isinstance(x, dict) and isinstance(inputs, dict) and set(x) == set(inputs)


def _without_optionals(data: Any) -> Any:
    """Replace empty `tf.experimental.Optional` values, which Keras passes for None, by None."""
    return tree.map_structure(
        lambda t: None if isinstance(t, tf.experimental.Optional) else t, data
    )
