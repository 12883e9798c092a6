"""IA3: learned vectors that scale keys, values and the inner activations of the feed-forward.

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
    """An adapter that scales the output of its target."""

    def create(self, target: LinearTarget) -> None:
        """Create `scale` [outputs], ones."""
        self.scale = self.add_weight(name="scale", shape=(target.outputs,), initializer="ones")

    def transform_output(self, x, y, training):
        """Return y * scale, [..., outputs]."""
        return y * ops.cast(self.scale, self.compute_dtype)

    def merge(self, kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the kernel with scaled columns, and the scaled bias."""
        scale = ops.convert_to_numpy(self.scale)
        return kernel * scale, bias * scale


class InputScale(Adapter):
    """An adapter that scales the input of its target."""

    def create(self, target: LinearTarget) -> None:
        """Create `scale` [inputs], ones."""
        self.scale = self.add_weight(name="scale", shape=(target.inputs,), initializer="ones")

    def transform_input(self, x, training):
        """Return x * scale, [..., inputs]."""
        return x * ops.cast(self.scale, self.compute_dtype)

    def merge(self, kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the kernel with scaled rows, and the unchanged bias."""
        return kernel * ops.convert_to_numpy(self.scale)[:, None], bias


def apply(model: keras.Model, stages: tuple[Stage, ...], config: Ia3Method) -> tuple[Phase, ...]:
    """Attach a vector to every target; train the vectors and the head.

    Targets of `feedforward` are scaled at the input, those of `targets` at the output. A target
    that both match is scaled at the input.

    Raises:
        UserError: a pattern matches nothing, or a target of `feedforward` is part of a fused layer.
    """
    input_targets = injection.select_targets(model, config.feedforward, "method.feedforward")
    for target in input_targets:
        if not target.is_whole_layer:
            # Scaling the input of one part of a fused layer would scale that of the others too.
            raise UserError(
                "method.feedforward: must match layers that share their input with no other. "
                f"Received: {target.name}"
            )
    names = {target.name for target in input_targets}
    output_targets = injection.select_targets(model, config.targets, "method.targets")
    # The patterns may overlap; a target gets one vector.
    output_targets = [target for target in output_targets if target.name not in names]
    injection.attach(output_targets, lambda target: OutputScale(dtype=target.policy, name="ia3"))
    injection.attach(input_targets, lambda target: InputScale(dtype=target.policy, name="ia3"))
    return masks.head_and_matches(stages, "re:/ia3/[^/]+$", "ia3")


METHOD = Method("ia3", apply)
