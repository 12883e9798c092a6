"""Weight-decomposed low-rank adaptation: W' = m (W + s A B) / |W + s A B|, by column.

Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", equation 5. The norm is treated as a
constant in the gradient (section 4.3).
"""

import keras
import numpy as np
from keras import ops

from tfft.config.methods import DoraMethod
from tfft.methods import lora
from tfft.model import injection, masks
from tfft.model.injection import LinearTarget
from tfft.spec import Method, Phase, Stage

_EPSILON = 1e-12  # lower bound of a column's norm, for columns of zeros


class DoraAdapter(lora.LowRank):
    """LoRA on the direction of each column, with a trainable magnitude per output."""

    def create(self, target: LinearTarget) -> None:
        """Create LoRA's variables and `magnitude` [outputs], at first the pretrained norms."""
        super().create(target)
        # Bound methods, so that each call reads the kernel in use.
        self._get_kernel, self._get_bias = target.kernel, target.bias
        norms = np.linalg.norm(ops.convert_to_numpy(target.kernel()), axis=0)  # [outputs]
        self.magnitude = self.add_weight(
            name="magnitude",
            shape=(target.outputs,),
            initializer=lambda shape, dtype=None: ops.convert_to_tensor(norms, dtype),
        )

    def transform_output(self, x, y, training):
        """Scale the adapted product to the magnitudes; the bias is left out of the scaling."""
        kernel = ops.cast(self._get_kernel(), "float32")
        product = ops.matmul(ops.cast(self.a, "float32"), ops.cast(self.b, "float32"))
        adapted = kernel + self.scale * product
        # Section 4.3: a constant in the backward pass, which saves the memory of its gradient.
        norms = ops.stop_gradient(ops.sqrt(ops.sum(ops.square(adapted), axis=0)))
        norms = ops.maximum(norms, _EPSILON)
        factor = ops.cast(ops.cast(self.magnitude, "float32") / norms, self.compute_dtype)
        bias = ops.cast(self._get_bias(), self.compute_dtype)
        return factor * (y - bias + self.product(x, training)) + bias

    def merge(self, kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return m (W + s A B) / |W + s A B| and the unchanged bias."""
        adapted = (kernel + self.delta()).astype(np.float64)
        norms = np.maximum(np.linalg.norm(adapted, axis=0), _EPSILON)
        factor = ops.convert_to_numpy(self.magnitude) / norms
        return (adapted * factor).astype(np.float32), bias


def apply(model: keras.Model, stages: tuple[Stage, ...], config: DoraMethod) -> tuple[Phase, ...]:
    """Attach an adapter to every target; train the adapters and the head."""
    injection.attach(
        injection.select_targets(model, config.targets, "method.targets"),
        lambda target: DoraAdapter(
            config.rank, lora.scale(config), config.dropout, dtype=target.policy, name="dora"
        ),
    )
    return masks.head_and_matches(stages, "re:/dora/[^/]+$", "dora")


METHOD = Method("dora", apply)
