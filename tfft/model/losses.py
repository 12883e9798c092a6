"""Losses as sums and counts, so that parts of a batch add up to the mean of the whole.

The step divides the sum of a term by its count over all replicas and micro-batches. A `Loss` gives
both for several named terms; `CompiledLoss` derives them from what Keras' `compile` was given.
"""

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import keras
import tensorflow as tf
from keras import tree

from tfft.utils import keras_internals

# Term -> its count over the global batch, float32 [].
Totals = dict[str, tf.Tensor]
ROWS = "rows"  # the count of rows, beside those of the terms


class Loss:
    """A loss of named terms: the sum over the terms of weight * sum / count.

    Give an instance to `Model.compile` in place of a Keras loss.

    Attributes:
        weights: factor of each term. The terms are in the logs by their names.
        scope: `rows`: each row has a loss of its own, and the methods take a part of the batch: the
            rows of one replica, or of one micro-batch. `batch`: rows depend on each other, as with
            in-batch negatives, and the methods take all rows of the global batch. Then all axes of
            outputs and targets but the first must be equal in all replicas.
    """

    weights: Mapping[str, float]
    scope: Literal["rows", "batch"] = "rows"

    def counts(self, y: Any, weight: Any) -> dict[str, tf.Tensor]:
        """Return what each term is a mean over, such as a number of tokens, [] each.

        Known before the forward pass: it depends on targets and sample weights alone.
        """
        raise NotImplementedError

    def sums(self, y: Any, y_pred: Any, weight: Any) -> dict[str, tf.Tensor]:
        """Return the sum of each term, [] each."""
        raise NotImplementedError


class StepLoss(Protocol):
    """A loss as the train step uses it.

    Attributes:
        per_row: the count for what has a value for each row, such as a divergence.
        metrics: what the logs show of it; the first one is `loss`.
    """

    per_row: str
    metrics: list[keras.metrics.Metric]

    def counts(self, x: Any, y: Any, weight: Any) -> Totals:
        """Return the counts of these rows."""

    def share(
        self, x: Any, y: Any, y_pred: Any, weight: Any, totals: Totals, training: bool
    ) -> tf.Tensor:
        """Return the summand that these rows contribute to the loss of the global batch."""

    def track(self, x: Any, y: Any, y_pred: Any, weight: Any, loss: Any, totals: Totals) -> None:
        """Update the mean losses of the epoch; `loss` is what `share` returned."""


class CompiledLoss:
    """The loss that `keras.Model.compile` was given: of any structure, and reduced by Keras.

    Args:
        model: the compiled model.
        tracker: the metric of the mean loss.
    """

    per_row = "loss"

    def __init__(self, model: Any, tracker: keras.metrics.Metric):
        self._model, self._tracker, self.metrics = model, tracker, [tracker]
        # A set: `sum` and `mean_with_sample_weight` count only where all losses agree. A loss by
        # name has Keras' default.
        default = "sum_over_batch_size"
        self._reductions = {getattr(fn, "reduction", default) for fn in tree.flatten(model.loss)}
        self._share: Any = 1.0  # of the current rows in the global batch, while tracing

    def counts(self, x: Any, y: Any, weight: Any) -> Totals:
        """Return the denominator of the mean loss: sum of sample weights, or number of rows."""
        if weight is not None and self._reductions == {"mean_with_sample_weight"}:
            # Any shape: with one weight a token this is the number of tokens that count.
            return {"loss": tf.reduce_sum(tf.cast(weight, tf.float32))}
        return {"loss": num_rows(x)}

    def share(
        self, x: Any, y: Any, y_pred: Any, weight: Any, totals: Totals, training: bool
    ) -> tf.Tensor:
        """Return the summand that these rows contribute to the loss of the global batch."""
        count = self.counts(x, y, weight)["loss"]
        self._share = tf.math.divide_no_nan(count, totals["loss"])
        loss = keras_internals.compute_loss(self._model, x, y, y_pred, weight, training)
        if self._is_sum:
            return loss
        # Keras divides the mean by the number of replicas; the share replaces that.
        mean = loss * _num_replicas() * self._share
        # A replica without rows has a mean of NaN, which a product with 0 would leave.
        return tf.where(self._share > 0, mean, tf.zeros_like(mean))

    def track(self, x: Any, y: Any, y_pred: Any, weight: Any, loss: Any, totals: Totals) -> None:
        """Update the mean loss of the epoch."""
        # Undo the share: the tracker averages losses of whole batches, weighted by their counts.
        whole = tf.math.divide_no_nan(loss, self._share)
        update(self._tracker, whole, self._share * totals["loss"])

    def additional(self, loss: tf.Tensor) -> tf.Tensor | None:
        """Return the share of a layer's regularisation loss; None: what Keras makes of it.

        Keras divides it by the number of replicas, like every mean. With a sum as the loss nothing
        is divided, so each share of the batch adds its share.
        """
        return tf.reduce_sum(loss) * self._share if self._is_sum else None

    @property
    def _is_sum(self) -> bool:
        return self._reductions == {"sum"}


class TermLoss:
    """A `Loss` in the train step.

    Args:
        model: the compiled model; regularisation losses of its layers are added.
        loss: the terms.

    Raises:
        ValueError: a term has a reserved name.
    """

    per_row = ROWS

    def __init__(self, model: Any, loss: Loss):
        if reserved := {"loss", ROWS} & set(loss.weights):
            raise ValueError(f"A term must not be named {' or '.join(reserved)}")
        self._model, self._loss = model, loss
        self._terms = {name: keras.metrics.Mean(name=name) for name in loss.weights}
        self._layers = keras.metrics.Mean(name="layers")
        total = _Total(loss.weights, self._terms, self._layers)
        self.metrics = [total, *self._terms.values()]

    def counts(self, x: Any, y: Any, weight: Any) -> Totals:
        """Return the counts of these rows."""
        return {**self._checked(self._loss.counts(y, weight)), ROWS: num_rows(x)}

    def share(
        self, x: Any, y: Any, y_pred: Any, weight: Any, totals: Totals, training: bool
    ) -> tf.Tensor:
        """Return the summand that these rows contribute to the loss of the global batch."""
        means = self._means(y, y_pred, weight, totals)
        return self._weighted(means) + self.layer_share(x, totals)

    def layer_share(self, x: Any, totals: Totals) -> tf.Tensor:
        """Return the share of these rows in the losses of layers."""
        share = tf.math.divide_no_nan(num_rows(x), totals[ROWS])
        # Without rows a mean of them is NaN.
        return tf.where(share > 0, self._layer_losses() * share, 0.0)

    def track(self, x: Any, y: Any, y_pred: Any, weight: Any, loss: Any, totals: Totals) -> None:
        """Update the mean of each term over what it counts."""
        counts = self.counts(x, y, weight)
        for name, mean in self._means(y, y_pred, weight, counts).items():
            update(self._terms[name], mean, counts[name])
        update(self._layers, self._layer_losses(), counts[ROWS])

    def _means(self, y: Any, y_pred: Any, weight: Any, counts: Totals) -> dict[str, tf.Tensor]:
        sums = self._checked(self._loss.sums(y, y_pred, weight))
        # Without rows a sum may be NaN, and there is nothing that it could add.
        return {
            name: tf.where(counts[name] > 0, tf.math.divide_no_nan(value, counts[name]), 0.0)
            for name, value in sums.items()
        }

    def _weighted(self, means: Mapping[str, tf.Tensor]) -> tf.Tensor:
        return tf.add_n([self._loss.weights[name] * mean for name, mean in means.items()])

    def _layer_losses(self) -> tf.Tensor:
        """Return the sum of weight regularisers and of losses that layers add when called."""
        return tf.add_n([tf.zeros([]), *(tf.reduce_sum(loss) for loss in self._model.losses)])

    def _checked(self, values: Mapping[str, Any]) -> dict[str, tf.Tensor]:
        if set(values) != set(self._loss.weights):
            terms = sorted(self._loss.weights)
            raise ValueError(f"Must have the terms {terms}. Received: {sorted(values)}")
        return {name: tf.cast(values[name], tf.float32) for name in self._loss.weights}


class _Total(keras.metrics.Metric):
    """The weighted sum of the means of all terms, and of the losses of the layers."""

    def __init__(
        self,
        weights: Mapping[str, float],
        terms: Mapping[str, keras.metrics.Metric],
        layers: keras.metrics.Metric,
    ):
        super().__init__(name="loss")
        self._weights, self._layers = weights, layers
        # Past Keras' tracking: the terms are metrics of the model themselves.
        self.__dict__["_terms"] = terms

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the terms are updated."""

    def reset_state(self) -> None:
        """Forget the losses of the layers; the terms are reset themselves."""
        self._layers.reset_state()

    def result(self) -> tf.Tensor:
        """Return the mean loss."""
        means = [weight * self._terms[name].result() for name, weight in self._weights.items()]
        return tf.add_n([*means, self._layers.result()])


def num_rows(x: Any) -> tf.Tensor:
    """Return the number of rows of the inputs, float32 []."""
    rows = tf.shape(next(t for t in tree.flatten(x) if t is not None))[0]
    return tf.cast(rows, tf.float32)


def update(tracker: keras.metrics.Metric, mean: tf.Tensor, count: tf.Tensor) -> None:
    """Add a mean over some rows to that of an epoch."""
    finite = tf.math.is_finite(mean)  # a skipped step must not spoil the mean either
    tracker.update_state(tf.where(finite, mean, 0.0), sample_weight=tf.where(finite, count, 0.0))


def _num_replicas() -> int:
    context = tf.distribute.get_replica_context()
    return context.num_replicas_in_sync if context else 1
