"""R-Drop: two passes with different dropout must agree.

Liang et al. 2021, "R-Drop: Regularized Dropout for Neural Networks", equation 4, with the mean of
the two losses as in the authors' code: both passes are one, of a batch that is there twice.
"""

from typing import Any

import keras
import tensorflow as tf
from keras import ops, tree


class RDrop:
    """The loss of a batch, for `model.step.Model.consistency`.

    Args:
        alpha: weight of the divergence.
    """

    def __init__(self, alpha: float):
        self.alpha = alpha

    def loss(
        self, model: Any, x: Any, y: Any, weight: Any, total: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """This replica's share of the loss, and the first pass's output."""
        doubled = tree.map_structure(lambda t: ops.concatenate([t, t], axis=0), x)
        first, second = ops.split(model(doubled, training=True), 2, axis=0)
        losses = [model._share_of_loss(x, y, out, weight, total) for out in (first, second)]
        rows = divergence(first, second)
        if weight is not None:
            rows = rows * ops.cast(weight, rows.dtype)
        apart = tf.math.divide_no_nan(ops.sum(rows), total)
        return 0.5 * (losses[0] + losses[1]) + self.alpha * apart, first


def divergence(first: keras.KerasTensor, second: keras.KerasTensor) -> keras.KerasTensor:
    """(KL(p | q) + KL(q | p)) / 2 of two sets of logits [B, C], for each row [B]."""
    p = ops.log_softmax(ops.cast(first, "float32"), axis=-1)
    q = ops.log_softmax(ops.cast(second, "float32"), axis=-1)
    return 0.5 * ops.sum((ops.exp(p) - ops.exp(q)) * (p - q), axis=-1)
