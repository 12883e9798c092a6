"""Weight-decomposed low-rank adaptation: W' = m (W + s A B) / |W + s A B|, by column.

Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", equation 5; the norm counts as a
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

_TINY = 1e-12  # the norm of a column of zeros counts as this


class Decomposed(lora.LowRank):
    """LoRA of the direction, with a magnitude for each output."""

    def create(self, projection: LinearTarget) -> None:
        """`magnitude` [outputs] starts as the norms of the pretrained columns."""
        super().create(projection)
        self._kernel_of, self._bias_of = projection.kernel, projection.bias
        norms = np.linalg.norm(ops.convert_to_numpy(projection.kernel()), axis=0)
        self.magnitude = self.add_weight(
            name="magnitude",
            shape=(projection.outputs,),
            initializer=lambda shape, dtype=None: ops.convert_to_tensor(norms, dtype),
        )

    def after(self, x, y, training):
        """[..., inputs] and [..., outputs] -> [..., outputs]."""
        kernel = ops.cast(self._kernel_of(), "float32")
        product = ops.matmul(ops.cast(self.a, "float32"), ops.cast(self.b, "float32"))
        whole = kernel + self.scale * product
        norms = ops.stop_gradient(ops.sqrt(ops.sum(ops.square(whole), axis=0)))
        norms = ops.maximum(norms, _TINY)
        share = ops.cast(ops.cast(self.magnitude, "float32") / norms, self.compute_dtype)
        bias = ops.cast(self._bias_of(), self.compute_dtype)
        return share * (y - bias + self.product(x, training)) + bias

    def merge(self, kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """m (W + s A B) / |W + s A B|; the bias stays."""
        whole = (kernel + self.delta()).astype(np.float64)
        norms = np.maximum(np.linalg.norm(whole, axis=0), _TINY)
        share = ops.convert_to_numpy(self.magnitude) / norms
        return (whole * share).astype(np.float32), bias


def apply(model: keras.Model, stages: tuple[Stage, ...], config: DoraMethod) -> tuple[Phase, ...]:
    """Attach an addition to every target."""
    injection.attach(
        injection.chosen(model, config.targets, "method.targets"),
        lambda target: Decomposed(
            config.rank, lora.scale(config), config.dropout, dtype=target.policy, name="dora"
        ),
    )
    return masks.head_and(stages, "re:/dora/[^/]+$", "dora")


METHOD = Method("dora", apply)
