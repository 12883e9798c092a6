"""Knowledge distillation: the logits of a teacher model are targets in addition to the labels.

Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network", section 2: the loss
against the teacher is multiplied by the square of the temperature.
"""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from tfft.utils.errors import UserError


class DistillationLoss(keras.losses.Loss):
    """(1 - weight) * loss(labels) + weight * T^2 * KL(teacher | student), both at temperature T.

    Args:
        loss: loss of the labels, one value per row; its reduction is kept.
        temperature: T.
        weight: weight of the teacher, from 0 to 1.
    """

    def __init__(self, loss: keras.losses.Loss, temperature: float, weight: float):
        super().__init__(name="loss", reduction=loss.reduction, dtype="float32")
        self.loss, self.temperature, self.weight = loss, temperature, weight

    @staticmethod
    def target_width(classes: int) -> int:
        """Return the width of a row's target: the class id and the teacher's logits."""
        return 1 + classes

    def call(self, y_true, y_pred):
        """Compute the loss of each row, [B].

        Args:
            y_true: class id and the teacher's logits, [B, 1 + C].
            y_pred: logits [B, C].
        """
        # Keras passes one target array: ids as floats are exact up to 2**24.
        labels, teacher = y_true[:, 0], y_true[:, 1:]  # [B], [B, C]
        p = ops.log_softmax(teacher / self.temperature, axis=-1)
        q = ops.log_softmax(ops.cast(y_pred, "float32") / self.temperature, axis=-1)
        divergence = ops.sum(ops.exp(p) * (p - q), axis=-1) * self.temperature**2  # [B]
        # `call` gives one value a row; `__call__` would reduce them.
        return (1 - self.weight) * self.loss.call(labels, y_pred) + self.weight * divergence


def targets(
    ids: np.ndarray,
    logits: np.ndarray,
    teacher_labels: Sequence[str],
    student_labels: Sequence[str],
) -> np.ndarray:
    """Join class ids and the teacher's logits into the targets of `DistillationLoss`.

    Args:
        ids: class ids of the student, [N].
        logits: of the teacher, [N, C], in the order of its labels.
        teacher_labels: class names of the teacher.
        student_labels: class names of the student, the same set.

    Returns:
        float32 [N, 1 + C], the logits in the order of the student's labels.

    Raises:
        UserError: the teacher has other classes than the student.
    """
    if set(teacher_labels) != set(student_labels):
        unmatched = sorted(set(teacher_labels) ^ set(student_labels))
        raise UserError(
            "regularization.distillation.teacher: must have the classes of the data. Received: "
            f"{', '.join(map(repr, unmatched[:5]))} on one side only"
        )
    # Both runs have the same classes, in orders of their own.
    order = [list(teacher_labels).index(name) for name in student_labels]
    return np.concatenate([ids[:, None], logits[:, order]], axis=1).astype(np.float32)
