"""The step of a loss over all rows of a batch together, such as one with in-batch negatives.

Each replica gathers the outputs of all replicas, computes the loss of the global batch, and
propagates its gradient back through its own rows. So no gradient passes through a collective.

Micro-batches use cached gradients (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size
under Memory Limited Setup", section 3): the outputs of all rows are computed without a tape, then
those of each micro-batch again, with the same random seeds. So does XLA on several replicas, which
cannot compile the collective between the two passes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import tensorflow as tf
from keras import StatelessScope, tree

from tfft.model import losses, seeds
from tfft.model.losses import Totals
from tfft.model.step_options import StepOptions

Tensors = list[tf.Tensor]
# Types that a collective does not gather -> a type that holds all of their values.
_GATHERED_AS = {
    tf.bfloat16: tf.float32,
    **dict.fromkeys((tf.bool, tf.int8, tf.uint8, tf.int16, tf.uint16), tf.int32),
}


class Means(NamedTuple):
    """The terms of the global batch.

    Attributes:
        values: mean of each term, [] each.
        counts: what each is a mean over, [] each.
    """

    values: Totals
    counts: Totals


class Part(NamedTuple):
    """What a replica computes of a step.

    Attributes:
        gradients: its share of the gradients, dense, in the order of the trainable variables.
        means: of the terms.
        layers: its share of the losses of layers, [].
        y_pred: outputs of its rows.
    """

    gradients: Tensors
    means: Means
    layers: tf.Tensor
    y_pred: Any


class GatheredLoss(losses.TermLoss):
    """A `losses.Loss` of scope `batch` in the train step."""

    # Means and share of the layers' losses of the rows that are traced, for `track`.
    _current: tuple[Means, tf.Tensor]

    def counts(self, x: Any, y: Any, weight: Any) -> Totals:
        """Return the number of rows; what the terms count is known once all are gathered."""
        return {losses.ROWS: losses.num_rows(x)}

    def share(
        self, x: Any, y: Any, y_pred: Any, weight: Any, totals: Totals, training: bool
    ) -> tf.Tensor:
        """Return the summand that these rows contribute to the loss of the global batch."""
        # Before the collective, which goes on in the trace of another replica: that replaces
        # `model.losses`.
        layers = self.layer_share(x, totals)
        (y, y_pred, weight), _ = _gather((y, y_pred, weight), x)
        return self.share_of(self._global_means(y, y_pred, weight), layers, x, totals)

    def share_of(self, means: Means, layers: tf.Tensor, x: Any, totals: Totals) -> tf.Tensor:
        """Return what `share` does, of means that are known; `track` logs them.

        Args:
            means: of the terms.
            layers: share of the rows in the losses of layers, [].
            x: inputs of the rows.
            totals: number of rows of the global batch.
        """
        self._current = means, layers
        return self._weighted(means.values) * _row_share(x, totals) + layers

    def track(self, x: Any, y: Any, y_pred: Any, weight: Any, loss: Any, totals: Totals) -> None:
        """Update the mean of each term over what it counts, with those of the last `share_of`."""
        (values, counts), layers = self._current
        share = _row_share(x, totals)
        for name, mean in values.items():
            # All replicas have the mean of the global batch: each adds its share of the count.
            losses.update(self._terms[name], mean, counts[name] * share)
        losses.update(self._layers, tf.math.divide_no_nan(layers, share), losses.num_rows(x))

    def output_gradients(
        self, x: Any, y: Any, y_pred: Any, weight: Any, scale: Callable[[tf.Tensor], tf.Tensor]
    ) -> tuple[Tensors, Means]:
        """Return the gradients of the global loss in the outputs of these rows, and its terms.

        Args:
            x: inputs of the rows.
            y: targets of the rows.
            y_pred: outputs of the rows.
            weight: sample weights of the rows, or None.
            scale: multiplies a loss by the scale of the loss scaler.

        Returns:
            The gradients in the order of the flat outputs, and the means of the terms.
        """
        (y, y_pred, weight), start = _gather((y, y_pred, weight), x)
        outputs = tree.flatten(y_pred)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(outputs)
            means = self._global_means(y, y_pred, weight)
            loss = scale(self._weighted(means.values))
        gradients = tape.gradient(loss, outputs, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        stop = start + _num_rows(x)
        return [tf.convert_to_tensor(gradient)[start:stop] for gradient in gradients], means

    def _global_means(self, y: Any, y_pred: Any, weight: Any) -> Means:
        counts = self._checked(self._loss.counts(y, weight))
        return Means(self._means(y, y_pred, weight, counts), counts)


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
        model: a functional `Model` whose loss has the scope `batch`.
        options: those of the trace.
        x: inputs of the rows.
        y: targets of the rows.
        weight: sample weights of the rows, or None.
        totals: number of rows of the global batch.
        micro_batch: rows per micro-batch, int32 [].

    Raises:
        ValueError: the options have a `consistency` or an `adversary`, which compute several passes
            over a batch.
    """
    for name in ("adversary", "consistency"):
        if getattr(options, name) is not None:
            raise ValueError(f"A loss of scope 'batch' does not go with the option {name}")
    compiled = (
        partial(tf.function, jit_compile=True, reduce_retracing=True, autograph=False)
        if model.uses_xla(options)
        else lambda function: function
    )
    rows = (x, y, weight)
    if options.micro_batch is not None:
        part = _cached(model, *rows, totals, micro_batch, compiled)
    elif model.uses_xla(options) and _num_replicas() > 1:
        part = _cached(model, *rows, totals, tf.maximum(_num_rows(x), 1), compiled)
    else:
        part = compiled(partial(_recorded, model))(*rows, totals)
    loss = model.step_loss.share_of(part.means, part.layers, x, totals)
    model.update_metrics(x, y, part.y_pred, weight, loss, totals)
    return loss, part.gradients


def _recorded(model: Any, x: Any, y: Any, weight: Any, totals: Totals) -> Part:
    """Compute in one pass over all rows of the replica."""
    step_loss, optimizer = model.step_loss, model.optimizer
    variables = [v.value for v in model.trainable_variables]
    with (
        seeds.fold_in_replica(model),
        tf.GradientTape(watch_accessed_variables=False) as tape,
    ):
        tape.watch(variables)
        y_pred = model(x, training=True)
        layers = step_loss.layer_share(x, totals)
        scaled_layers = optimizer.scale_loss(layers)
    upstream, means = step_loss.output_gradients(x, y, y_pred, weight, optimizer.scale_loss)
    gradients = _backward(tape, y_pred, upstream, scaled_layers, variables)
    return Part(gradients, means, layers, y_pred)


def _cached(
    model: Any,
    x: Any,
    y: Any,
    weight: Any,
    totals: Totals,
    size: tf.Tensor,
    compiled: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> Part:
    """Compute in two passes over the micro-batches.

    Args:
        size: rows per micro-batch, int32 [].
        compiled: decorates the functions of a pass, whose variables are those of this replica.
    """
    step_loss, optimizer = model.step_loss, model.optimizer
    variables = [v.value for v in model.trainable_variables]
    # At least one, also without rows: the outputs still need their shapes.
    count = tf.maximum(-(-_num_rows(x) // size), 1)
    drawn = seeds.draw(model)
    replica = tf.cast(_replica_index(), tf.int32)

    def micro_batch(index: tf.Tensor) -> tuple[Any, Tensors]:
        """Return the inputs of a micro-batch, and its seeds."""
        start = index * size
        inputs = tree.map_structure(lambda t: None if t is None else t[start : start + size], x)
        # The first one of a replica has the seeds of a batch that is not divided.
        number = index * _num_replicas() + replica
        return inputs, [seeds.fold_in(seed, number) for seed in drawn]

    @compiled
    def forward(inputs: Any, step_seeds: Tensors) -> Any:
        # The scope drops what layers write, such as moving statistics: the second pass writes them.
        with StatelessScope(), seeds.use(model, step_seeds):
            return model(inputs, training=True)

    @compiled
    def backward(inputs: Any, step_seeds: Tensors, upstream: Tensors) -> tuple[tf.Tensor, Tensors]:
        with (
            seeds.use(model, step_seeds),
            tf.GradientTape(watch_accessed_variables=False) as tape,
        ):
            tape.watch(variables)
            y_pred = model(inputs, training=True)
            layers = step_loss.layer_share(inputs, totals)
            scaled_layers = optimizer.scale_loss(layers)
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
    upstream, means = step_loss.output_gradients(x, y, y_pred, weight, optimizer.scale_loss)

    def add(index: tf.Tensor, layers: tf.Tensor, sums: Tensors) -> Any:
        start = index * size
        more, parts = backward(*micro_batch(index), [t[start : start + size] for t in upstream])
        return index + 1, layers + more, [a + b for a, b in zip(sums, parts, strict=True)]

    zeros = [tf.zeros(v.shape, v.dtype) for v in model.trainable_variables]
    _, layers, sums = tf.while_loop(
        lambda index, *_: index < count, add, (0, tf.zeros([]), zeros), parallel_iterations=1
    )
    return Part(sums, means, layers, y_pred)


def _backward(
    tape: tf.GradientTape, y_pred: Any, upstream: Tensors, layers: tf.Tensor, variables: Tensors
) -> Tensors:
    """Return the gradients of the variables from those of the outputs and the layers' losses."""
    gradients = tape.gradient(
        [*tree.flatten(y_pred), layers],
        variables,
        output_gradients=[*upstream, tf.ones_like(layers)],
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    return [tf.convert_to_tensor(gradient) for gradient in gradients]


def _gather(values: Any, x: Any) -> tuple[Any, tf.Tensor | int]:
    """Return copies with the rows of all replicas in order, and the index of the first own row.

    All axes but the first must be equal in all replicas.
    """
    # Copies: one tensor may be two outputs, and a collective needs tensors with a device.
    tensors = [tf.identity(t) for t in tree.flatten(values) if t is not None]
    start: tf.Tensor | int = 0
    if _num_replicas() > 1:
        context = tf.distribute.get_replica_context()
        sent = [tf.cast(t, _GATHERED_AS.get(t.dtype, t.dtype)) for t in tensors]
        sizes, *gathered = context.all_gather([tf.identity(_num_rows(x)[None]), *sent], axis=0)
        tensors = [tf.cast(g, t.dtype) for g, t in zip(gathered, tensors, strict=True)]
        before = tf.range(_num_replicas()) < context.replica_id_in_sync_group
        start = tf.reduce_sum(tf.where(before, sizes, 0))
    remaining = iter(tensors)
    return tree.map_structure(lambda t: None if t is None else next(remaining), values), start


def _num_rows(x: Any) -> tf.Tensor:
    return tf.cast(losses.num_rows(x), tf.int32)


def _row_share(x: Any, totals: Totals) -> tf.Tensor:
    """Return the share of the rows in the global batch, [] from 0 to 1."""
    return tf.math.divide_no_nan(losses.num_rows(x), totals[losses.ROWS])


def _num_replicas() -> int:
    return tf.distribute.get_replica_context().num_replicas_in_sync


def _replica_index() -> Any:
    return tf.distribute.get_replica_context().replica_id_in_sync_group
