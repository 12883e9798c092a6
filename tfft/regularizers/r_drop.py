"""R-Drop: penalize the divergence of two forward passes with different dropout masks.

Liang et al. 2021, "R-Drop: Regularized Dropout for Neural Networks", equation 4, with the mean of
the two losses. As in the authors' code, both passes are one pass over the batch repeated twice.
"""

from typing import Any

import keras
import tensorflow as tf
from keras import ops, tree


class RDrop:
    """Loss of a batch with R-Drop, for `StepOptions.consistency`.

    Args:
        alpha: weight of the divergence.
    """

    def __init__(self, alpha: float):
        self.alpha = alpha

    def loss(
        self, model: Any, x: Any, y: Any, weight: Any, totals: dict[str, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Compute the share of these rows in the loss, and the output of the first pass.

        Args:
            model: the `Model`.
            x: inputs of the rows.
            y: targets of the rows.
            weight: sample weights [B], or None.
            totals: counts of the global batch by term of the loss, float32 [] each.
        """
        doubled = tree.map_structure(lambda t: ops.concatenate([t, t], axis=0), x)  # [2B, ...]
        first, second = ops.split(model(doubled, training=True), 2, axis=0)
        # Each holds the layers' regularisation losses once, and so does their mean.
        losses = [model.loss_share(x, y, out, weight, totals) for out in (first, second)]
        divergences = divergence(first, second)
        if weight is not None:
            divergences = divergences * ops.cast(weight, divergences.dtype)
        # Over the global batch, like the loss: the shares of replicas and micro-batches add up.
        mean_divergence = tf.math.divide_no_nan(
            ops.sum(divergences), totals[model.step_loss.per_row]
        )
        return 0.5 * (losses[0] + losses[1]) + self.alpha * mean_divergence, first


def divergence(first: keras.KerasTensor, second: keras.KerasTensor) -> keras.KerasTensor:
    """Return (KL(p | q) + KL(q | p)) / 2 per row, [B], of two arrays of logits [B, C]."""
    p = ops.log_softmax(ops.cast(first, "float32"), axis=-1)
    q = ops.log_softmax(ops.cast(second, "float32"), axis=-1)
    # Both divergences in one sum: p (log p - log q) + q (log q - log p).
    return 0.5 * ops.sum((ops.exp(p) - ops.exp(q)) * (p - q), axis=-1)
