"""Losses as sums and counts, so that parts of a batch add up to the mean of the whole.

The step divides the sum of a term by its count over all replicas and micro-batches. A `Loss` gives
both by itself, for several named terms; `CompiledLoss` derives them from what Keras' `compile` was
given.
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

    Give an instance to `Model.compile` in place of a Keras loss. Shapes are those of a part of the
    batch: rows of one replica, or of one micro-batch.

    Attributes:
        weights: factor of each term.
        scope: `row` where the sums of parts of a batch add up to that of the batch. `batch` where
            the loss of a row depends on the other rows, such as in-batch negatives: `sums` then
            gets the rows of all replicas, and micro-batches are refused.
    """

    weights: Mapping[str, float]
    scope: Literal["row", "batch"] = "row"

    def counts(self, y: Any, weight: Any) -> dict[str, tf.Tensor]:
        """Return what each term is a mean over, such as a number of tokens; float32 [] each.

        Known before the forward pass: it depends on targets and sample weights alone.
        """
        raise NotImplementedError

    def sums(self, y: Any, y_pred: Any, weight: Any) -> dict[str, tf.Tensor]:
        """Return the sum of each term, float32 [] each."""
        raise NotImplementedError


class StepLoss(Protocol):
    """A loss as the train step uses it.

    Attributes:
        gathers: whether it needs the rows of all replicas, by a collective in the forward pass.
        reduces_in_evaluation: whether its mean needs the counts of all replicas in evaluation too.
        trackers: metrics of the single terms, by name.
    """

    gathers: bool
    reduces_in_evaluation: bool
    trackers: Mapping[str, keras.metrics.Metric]

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

    gathers = False
    reduces_in_evaluation = False
    trackers: Mapping[str, keras.metrics.Metric] = {}

    def __init__(self, model: Any, tracker: keras.metrics.Metric):
        self._model, self._tracker = model, tracker
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
        # Undo the share: the tracker averages means, weighted by what each is a mean over.
        mean = loss if self._is_sum else tf.math.divide_no_nan(loss, self._share)
        _update(self._tracker, mean, self._share * totals["loss"])

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
        tracker: the metric of the mean loss.
    """

    # The loss of a batch is a sum of means with counts of their own.
    reduces_in_evaluation = True

    def __init__(self, model: Any, tracker: keras.metrics.Metric):
        loss: Loss = model.loss
        if ROWS in loss.weights:
            raise ValueError(f"A term must not be named {ROWS!r}. Received: {list(loss.weights)}")
        self._model, self._tracker, self._loss = model, tracker, loss
        names = list(loss.weights) if len(loss.weights) > 1 else []
        # One term alone is the mean loss.
        self.trackers = {name: keras.metrics.Mean(name=name) for name in names}

    def counts(self, x: Any, y: Any, weight: Any) -> Totals:
        """Return the counts of these rows."""
        return {**self._loss.counts(y, weight), ROWS: num_rows(x)}

    def share(
        self, x: Any, y: Any, y_pred: Any, weight: Any, totals: Totals, training: bool
    ) -> tf.Tensor:
        """Return the summand that these rows contribute to the loss of the global batch."""
        means = self._means(y, y_pred, weight, totals)
        share = tf.math.divide_no_nan(num_rows(x), totals[ROWS])
        # Inside of the model: what its layers add to the loss while they are called.
        return self._total(means) + sum(
            tf.reduce_sum(extra) * share for extra in self._model.losses
        )

    def track(self, x: Any, y: Any, y_pred: Any, weight: Any, loss: Any, totals: Totals) -> None:
        """Update the mean of the loss over batches, and that of each term over what it counts."""
        counts = self.counts(x, y, weight)
        count = next(iter(self._loss.weights)) if len(self._loss.weights) == 1 else ROWS
        # The parts of a batch add up to its loss, however it is divided.
        part = tf.math.divide_no_nan(counts[count], totals[count])
        _update(self._tracker, tf.math.divide_no_nan(loss, part), counts[count])
        if not self.trackers:
            return
        if self.gathers:
            # Each replica has the sums of the whole batch, so it counts for its part of it.
            counts = {name: total / _num_replicas() for name, total in totals.items()}
        means = self._means(y, y_pred, weight, counts)
        for name, tracker in self.trackers.items():
            _update(tracker, means[name], counts[name])

    def _means(self, y: Any, y_pred: Any, weight: Any, counts: Totals) -> dict[str, tf.Tensor]:
        part = 1.0
        if self.gathers:
            y, y_pred, weight = _gather((y, y_pred, weight))
            # Each replica computes the sums of the whole batch, so it counts for its part of it.
            part = 1.0 / _num_replicas()
        sums = self._loss.sums(y, y_pred, weight)
        return {
            name: part * tf.math.divide_no_nan(tf.cast(sums[name], tf.float32), counts[name])
            for name in self._loss.weights
        }

    def _total(self, means: Mapping[str, tf.Tensor]) -> tf.Tensor:
        return tf.add_n([self._loss.weights[name] * mean for name, mean in means.items()])

    @property
    def gathers(self) -> bool:
        """Whether the loss needs the rows of other replicas."""
        return self._loss.scope == "batch" and _num_replicas() > 1


def num_rows(x: Any) -> tf.Tensor:
    """Return the number of rows of the inputs, float32 []."""
    rows = tf.shape(next(t for t in tree.flatten(x) if t is not None))[0]
    return tf.cast(rows, tf.float32)


def _gather(values: Any) -> Any:
    """Return the rows of all replicas; gradients flow back to the replica of each row."""
    context = tf.distribute.get_replica_context()
    return tree.map_structure(
        lambda t: None if t is None else context.all_gather(t, axis=0), values
    )


def _update(tracker: keras.metrics.Metric, mean: tf.Tensor, count: tf.Tensor) -> None:
    finite = tf.math.is_finite(mean)  # a skipped step must not spoil the mean either
    tracker.update_state(tf.where(finite, mean, 0.0), sample_weight=tf.where(finite, count, 0.0))


def _num_replicas() -> int:
    context = tf.distribute.get_replica_context()
    return context.num_replicas_in_sync if context else 1
