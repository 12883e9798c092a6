"""Knowledge distillation: the answers of a bigger tfft model are targets beside the labels.

Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network", section 2: the
teacher's part of the loss is multiplied by the temperature's square.
"""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from tfft.utils.errors import UserError


class Distilled(keras.losses.Loss):
    """(1 - weight) * loss(labels) + weight * T^2 * KL(teacher | student), both at temperature T.

    Args:
        loss: of the labels, one value a row.
    """

    def __init__(self, loss: keras.losses.Loss, temperature: float, weight: float):
        super().__init__(name="loss", reduction=loss.reduction, dtype="float32")
        self.loss, self.temperature, self.weight = loss, temperature, weight

    @staticmethod
    def target_width(classes: int) -> int:
        """Numbers of a row's target: the class id, and the teacher's logits."""
        return 1 + classes

    def call(self, y_true, y_pred):
        """Class id and the teacher's logits [B, 1 + C], logits [B, C] -> [B]."""
        labels, teacher = y_true[:, 0], y_true[:, 1:]
        p = ops.log_softmax(teacher / self.temperature, axis=-1)
        q = ops.log_softmax(ops.cast(y_pred, "float32") / self.temperature, axis=-1)
        apart = ops.sum(ops.exp(p) * (p - q), axis=-1) * self.temperature**2
        return (1 - self.weight) * self.loss.call(labels, y_pred) + self.weight * apart


def targets(
    ids: np.ndarray, logits: np.ndarray, theirs: Sequence[str], ours: Sequence[str]
) -> np.ndarray:
    """Class ids [N] and the teacher's logits [N, C], in our order of classes: float32 [N, 1 + C].

    Raises:
        UserError: the teacher knows other classes.
    """
    if set(theirs) != set(ours):
        only = sorted(set(theirs) ^ set(ours))
        raise UserError(
            "regularization.distillation.teacher: has other classes: "
            f"{', '.join(map(repr, only[:5]))} on one side only"
        )
    order = [list(theirs).index(name) for name in ours]
    return np.concatenate([ids[:, None], logits[:, order]], axis=1).astype(np.float32)
