"""Learned vectors that scale keys, values and the inner activations.

Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
Learning", section 3.3. All vectors start at one.
"""

import keras
import numpy as np
from keras import ops

from tfft.config.methods import Ia3Method
from tfft.model import injection, masks
from tfft.model.injection import Adapter, LinearTarget
from tfft.spec import Method, Phase, Stage
from tfft.utils.errors import UserError


class OutputScale(Adapter):
    """Scales the output of a projection."""

    def create(self, projection: LinearTarget) -> None:
        """`scale` [outputs], ones."""
        self.scale = self.add_weight(name="scale", shape=(projection.outputs,), initializer="ones")

    def after(self, x, y, training):
        """[..., outputs], scaled."""
        return y * ops.cast(self.scale, self.compute_dtype)

    def merge(self, kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Columns and bias, scaled."""
        scale = ops.convert_to_numpy(self.scale)
        return kernel * scale, bias * scale


class InputScale(Adapter):
    """Scales the input of a projection."""

    def create(self, projection: LinearTarget) -> None:
        """`scale` [inputs], ones."""
        self.scale = self.add_weight(name="scale", shape=(projection.inputs,), initializer="ones")

    def before(self, x, training):
        """[..., inputs], scaled."""
        return x * ops.cast(self.scale, self.compute_dtype)

    def merge(self, kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows, scaled."""
        return kernel * ops.convert_to_numpy(self.scale)[:, None], bias


def apply(model: keras.Model, stages: tuple[Stage, ...], config: Ia3Method) -> tuple[Phase, ...]:
    """Attach a vector to every target; where both expressions match, the input is scaled."""
    inner = injection.chosen(model, config.feedforward, "method.feedforward")
    for target in inner:
        if not target.whole:
            raise UserError(
                f"method.feedforward: {target.name} shares its input with others: it cannot be "
                "scaled alone"
            )
    names = {target.name for target in inner}
    outer = injection.chosen(model, config.targets, "method.targets")
    outer = [target for target in outer if target.name not in names]
    injection.attach(outer, lambda target: OutputScale(dtype=target.policy, name="ia3"))
    injection.attach(inner, lambda target: InputScale(dtype=target.policy, name="ia3"))
    return masks.head_and(stages, "re:/ia3/[^/]+$", "ia3")


METHOD = Method("ia3", apply)
