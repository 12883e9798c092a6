"""Low-rank additions to frozen projections: y = x W + s (x A) B.

Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1: A starts
random, B at zero, s = alpha / rank. Rank-stabilized: Kalajdzievski 2023, s = alpha / sqrt(rank).
"""

import keras
import numpy as np
from keras import ops

from tfft.config.methods import LoraMethod
from tfft.model import injection, masks
from tfft.model.injection import Adapter, LinearTarget
from tfft.spec import Method, Phase, Stage


class LowRank(Adapter):
    """A product of two thin matrices beside a projection.

    Args:
        rank: the width between them.
        scale: factor on the product.
        dropout: rate on its input.
    """

    def __init__(self, rank: int, scale: float, dropout: float, **kwargs):
        super().__init__(**kwargs)
        self.rank, self.scale = rank, scale
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def create(self, projection: LinearTarget) -> None:
        """`a` [inputs, rank], uniform as in a fresh dense layer of PyTorch, which the authors'
        code starts from; `b` [rank, outputs], zeros."""
        bound = projection.inputs**-0.5
        self.a = self.add_weight(
            name="a",
            shape=(projection.inputs, self.rank),
            initializer=keras.initializers.RandomUniform(-bound, bound),
        )
        self.b = self.add_weight(
            name="b", shape=(self.rank, projection.outputs), initializer="zeros"
        )

    def after(self, x, y, training):
        """[..., inputs] and [..., outputs] -> [..., outputs]."""
        return y + self.product(x, training)

    def product(self, x, training):
        """The addition alone."""
        x = self.dropout(x, training=training)
        return ops.matmul(ops.matmul(x, self.a), self.b) * self.scale

    def merge(self, kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """W + s A B; the bias stays."""
        return kernel + self.delta(), bias

    def delta(self) -> np.ndarray:
        """s A B, [inputs, outputs]."""
        a, b = ops.convert_to_numpy(self.a), ops.convert_to_numpy(self.b)
        return (self.scale * (a.astype(np.float64) @ b)).astype(np.float32)


def scale(config: LoraMethod) -> float:
    """The factor on the addition."""
    root = config.scaling == "rank_stabilized"
    return config.alpha / (config.rank**0.5 if root else config.rank)


def apply(model: keras.Model, stages: tuple[Stage, ...], config: LoraMethod) -> tuple[Phase, ...]:
    """Attach an addition to every target."""
    injection.attach(
        injection.chosen(model, config.targets, "method.targets"),
        lambda target: LowRank(
            config.rank, scale(config), config.dropout, dtype=target.policy, name="lora"
        ),
    )
    return masks.head_and(stages, "re:/lora/[^/]+$", "lora")


METHOD = Method("lora", apply)
