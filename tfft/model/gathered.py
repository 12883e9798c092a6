"""The step of a loss over all rows of a batch together, such as one with in-batch negatives.

Each replica gathers the outputs of all replicas, computes the loss of the global batch, and
propagates its gradient back through its own rows. So no gradient passes through a collective.

Micro-batches use cached gradients (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size
under Memory Limited Setup", section 3): the outputs of all rows are computed without a tape, then
those of each micro-batch again, with the same random seeds.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import tensorflow as tf
from keras import StatelessScope, tree

from tfft.model import losses, seeds
from tfft.model.losses import Totals
from tfft.model.step_options import StepOptions

Tensors = list[tf.Tensor]


class GatheredLoss(losses.TermLoss):
    """A `losses.Loss` of scope `batch` in the train step."""

    def counts(self, x: Any, y: Any, weight: Any) -> Totals:
        """Return the number of rows; what the terms count is known once all are gathered."""
        return {losses.ROWS: losses.num_rows(x)}

    def share(
        self, x: Any, y: Any, y_pred: Any, weight: Any, totals: Totals, training: bool
    ) -> tf.Tensor:
        """Return the summand that these rows contribute to the loss of the global batch."""
        layers = self.layer_share(x, totals)  # first: a collective switches to another replica
        _, means = self.output_gradients(y, y_pred, weight)
        return self.total(x, means, layers, totals)

    def total(
        self, x: Any, means: dict[str, tf.Tensor], layers: tf.Tensor, totals: Totals
    ) -> tf.Tensor:
        """Return the summand of these rows.

        Args:
            x: inputs of the rows.
            means: mean of each term over the global batch.
            layers: share of the rows in the losses of layers.
            totals: number of rows of the global batch.
        """
        self._current = means, layers  # for `track`, while tracing
        share = tf.math.divide_no_nan(losses.num_rows(x), totals[losses.ROWS])
        return self._weighted(means) * share + layers

    def track(self, x: Any, y: Any, y_pred: Any, weight: Any, loss: Any, totals: Totals) -> None:
        """Update the mean losses of the epoch with those of the last `total`."""
        means, layers = self._current
        rows = losses.num_rows(x)
        for name, mean in means.items():
            losses.update(self._terms[name], mean, rows)
        whole = tf.math.divide_no_nan(layers * totals[losses.ROWS], rows)
        losses.update(self._layers, whole, rows)

    def output_gradients(
        self,
        y: Any,
        y_pred: Any,
        weight: Any,
        scale: Callable[[tf.Tensor], tf.Tensor] = tf.identity,
    ) -> tuple[Tensors, dict[str, tf.Tensor]]:
        """Return the gradients of the global loss in the outputs of these rows.

        Args:
            y: targets of the rows.
            y_pred: outputs of the rows.
            weight: sample weights of the rows, or None.
            scale: of the loss scaler.

        Returns:
            The gradients in the order of the flat outputs, and the mean of each term.
        """
        rows = tf.shape(tree.flatten(y_pred)[0])[0]
        (y, y_pred, weight), start = _gather((y, y_pred, weight), rows)
        outputs = tree.flatten(y_pred)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(outputs)
            means = self._means(y, y_pred, weight, self._checked(self._loss.counts(y, weight)))
            loss = scale(self._weighted(means))
        gradients = tape.gradient(loss, outputs, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [gradient[start : start + rows] for gradient in gradients], means


def gradients(
    model: Any,
    options: StepOptions,
    x: Any,
    y: Any,
    weight: Any,
    totals: Totals,
    micro_batch: tf.Tensor,
) -> tuple[tf.Tensor, Tensors]:
    """Return this replica's share of the loss and of the gradients, as dense tensors.

    Args:
        model: a `Model` whose loss has the scope `batch`.
        options: those of the trace.
        x: inputs of the rows.
        y: targets of the rows.
        weight: sample weights of the rows, or None.
        totals: number of rows of the global batch.
        micro_batch: rows per micro-batch, int32 [].

    Raises:
        ValueError: the step computes several passes over a batch, each with another loss.
    """
    for name in ("adversary", "consistency"):
        if getattr(options, name) is not None:
            raise ValueError(f"A loss of scope 'batch' does not go with the option {name}")
    is_compiled = not model.run_eagerly and (model.jit_compile or options.jit_compile)
    if options.micro_batch is None and not is_compiled:
        loss, parts, y_pred = _recorded(model, x, y, weight, totals)
    else:  # XLA compiles each of the two passes: it cannot compile a collective on every device
        size = None if options.micro_batch is None else micro_batch
        loss, parts, y_pred = _cached(model, x, y, weight, totals, size, is_compiled)
    model.update_metrics(x, y, y_pred, weight, loss, totals)
    return loss, parts


def _recorded(
    model: Any, x: Any, y: Any, weight: Any, totals: Totals
) -> tuple[tf.Tensor, Tensors, Any]:
    """Return loss, gradients and outputs from one pass over all rows of the replica."""
    step_loss, variables = model.step_loss, [v.value for v in model.trainable_variables]
    with (
        seeds.fold_in_replica(model),
        tf.GradientTape(watch_accessed_variables=False) as tape,
    ):
        tape.watch(variables)
        y_pred = model(x, training=True)
        layers = step_loss.layer_share(x, totals)
        scaled_layers = model.optimizer.scale_loss(layers)
    upstream, means = step_loss.output_gradients(y, y_pred, weight, model.optimizer.scale_loss)
    parts = _backward(tape, y_pred, upstream, scaled_layers, variables)
    return step_loss.total(x, means, layers, totals), parts, y_pred


def _cached(
    model: Any, x: Any, y: Any, weight: Any, totals: Totals, size: tf.Tensor | None, compiled: bool
) -> tuple[tf.Tensor, Tensors, Any]:
    """Return loss, gradients and outputs from two passes over the micro-batches.

    Args:
        size: rows per micro-batch, int32 []; None: all.
        compiled: whether XLA compiles each pass.
    """
    step_loss, variables = model.step_loss, [v.value for v in model.trainable_variables]
    # One function per replica: compiled code holds the variables of the replica that traces it.
    function = (
        partial(tf.function, jit_compile=True, reduce_retracing=True, autograph=False)
        if compiled
        else lambda body: body
    )
    rows = tf.cast(losses.num_rows(x), tf.int32)
    size = tf.maximum(rows, 1) if size is None else size
    # At least one, also without rows: the outputs still need their shapes.
    count = tf.maximum(-(-rows // size), 1)
    with seeds.fold_in_replica(model):
        drawn = seeds.draw(model)

    def micro_batch(index: tf.Tensor) -> tuple[Any, Tensors]:
        """Return the inputs of a micro-batch, and its seeds."""
        start = index * size
        inputs = tree.map_structure(lambda t: None if t is None else t[start : start + size], x)
        return inputs, [seeds.fold_in(seed, index) for seed in drawn]

    @function
    def forward(inputs: Any, drawn: Tensors) -> Any:
        # The scope drops what layers write, such as moving statistics: the second pass does so.
        with StatelessScope(), seeds.use(model, drawn):
            return model(inputs, training=True)

    @function
    def backward(inputs: Any, drawn: Tensors, upstream: Tensors) -> tuple[tf.Tensor, Tensors]:
        with (
            seeds.use(model, drawn),
            tf.GradientTape(watch_accessed_variables=False) as tape,
        ):
            tape.watch(variables)
            y_pred = model(inputs, training=True)
            layers = step_loss.layer_share(inputs, totals)
            scaled_layers = model.optimizer.scale_loss(layers)
        return layers, _backward(tape, y_pred, upstream, scaled_layers, variables)

    template = (model.options.upper_part or model).output
    arrays = tuple(
        tf.TensorArray(spec.dtype, count, infer_shape=False, element_shape=[None, *spec.shape[1:]])
        for spec in tree.flatten(template)
    )

    def write(index: tf.Tensor, arrays: tuple[tf.TensorArray, ...]) -> Any:
        outputs = tree.flatten(forward(*micro_batch(index)))
        return index + 1, tuple(a.write(index, t) for a, t in zip(arrays, outputs, strict=True))

    _, arrays = tf.while_loop(
        lambda index, _: index < count, write, (0, arrays), parallel_iterations=1
    )
    y_pred = tree.pack_sequence_as(template, [array.concat() for array in arrays])
    upstream, means = step_loss.output_gradients(y, y_pred, weight, model.optimizer.scale_loss)

    def add(index: tf.Tensor, layers: tf.Tensor, sums: Tensors) -> Any:
        start = index * size
        part, parts = backward(*micro_batch(index), [t[start : start + size] for t in upstream])
        return index + 1, layers + part, [a + b for a, b in zip(sums, parts, strict=True)]

    zeros = [tf.zeros(v.shape, v.dtype) for v in model.trainable_variables]
    _, layers, sums = tf.while_loop(
        lambda index, *_: index < count, add, (0, tf.zeros([]), zeros), parallel_iterations=1
    )
    return step_loss.total(x, means, layers, totals), sums, y_pred


def _backward(
    tape: tf.GradientTape, y_pred: Any, upstream: Tensors, layers: tf.Tensor, variables: Tensors
) -> Tensors:
    """Return the gradients of the variables from those of the outputs and the layers' losses."""
    return [
        tf.convert_to_tensor(gradient)
        for gradient in tape.gradient(
            [*tree.flatten(y_pred), layers],
            variables,
            output_gradients=[*upstream, tf.ones_like(layers)],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
    ]


def _gather(values: Any, rows: tf.Tensor) -> tuple[Any, tf.Tensor | int]:
    """Return tensors with the rows of all replicas in order, and the index of the own first row."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return values, 0
    tensors = [t for t in tree.flatten(values) if t is not None]
    sizes, *gathered = context.all_gather([rows[None], *tensors], axis=0)
    remaining = iter(gathered)
    before = tf.range(context.num_replicas_in_sync) < context.replica_id_in_sync_group
    start = tf.reduce_sum(tf.where(before, sizes, 0))
    return tree.map_structure(lambda t: None if t is None else next(remaining), values), start
