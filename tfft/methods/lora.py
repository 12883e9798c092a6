"""LoRA: low-rank updates of frozen linear layers, y = x W + s (x A) B.

Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1: A is
random at first, B is zero, s = alpha / rank. Rank-stabilized (Kalajdzievski 2023):
s = alpha / sqrt(rank).
"""

import keras
import numpy as np
from keras import ops

from tfft.config.methods import LoraMethod
from tfft.model import injection, masks
from tfft.model.injection import Adapter, LinearTarget
from tfft.spec import Method, Phase, Stage


class LowRank(Adapter):
    """An adapter that adds the product of two thin matrices to a linear layer.

    Args:
        rank: inner width of the product.
        scale: factor of the product.
        dropout: dropout rate of its input.
        **kwargs: of the Keras layer.
    """

    def __init__(self, rank: int, scale: float, dropout: float, **kwargs):
        super().__init__(**kwargs)
        self.rank, self.scale = rank, scale
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def create(self, target: LinearTarget) -> None:
        """Create `a` [inputs, rank], uniform, and `b` [rank, outputs], zeros."""
        # The authors' code draws A like a new `torch.nn.Linear`.
        bound = target.inputs**-0.5
        self.a = self.add_weight(
            name="a",
            shape=(target.inputs, self.rank),
            initializer=keras.initializers.RandomUniform(-bound, bound),
        )
        self.b = self.add_weight(name="b", shape=(self.rank, target.outputs), initializer="zeros")

    def transform_output(self, x, y, training):
        """Return y + s (x A) B, [..., outputs]."""
        return y + self.product(x, training)

    def product(self, x, training):
        """Return s (x A) B, [..., outputs]."""
        # On the low-rank path only: the pretrained product sees the whole input.
        x = self.dropout(x, training=training)
        # (x A) B, not x (A B): the width in between is `rank`.
        return ops.matmul(ops.matmul(x, self.a), self.b) * self.scale

    def merge(self, kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return W + s A B and the unchanged bias."""
        return kernel + self.delta(), bias

    def delta(self) -> np.ndarray:
        """Return s A B, float32 [inputs, outputs]."""
        a, b = ops.convert_to_numpy(self.a), ops.convert_to_numpy(self.b)
        # float64, so that the product is rounded once.
        return (self.scale * (a.astype(np.float64) @ b)).astype(np.float32)


def scale(config: LoraMethod) -> float:
    """Return s: alpha / rank, or alpha / sqrt(rank) where the scaling is rank-stabilized."""
    rank_stabilized = config.scaling == "rank_stabilized"
    return config.alpha / (config.rank**0.5 if rank_stabilized else config.rank)


def apply(model: keras.Model, stages: tuple[Stage, ...], config: LoraMethod) -> tuple[Phase, ...]:
    """Attach an adapter to every target; train the adapters and the head."""
    injection.attach(
        injection.select_targets(model, config.targets, "method.targets"),
        lambda target: LowRank(
            config.rank, scale(config), config.dropout, dtype=target.policy, name="lora"
        ),
    )
    return masks.head_and_matches(stages, "re:/lora/[^/]+$", "lora")


METHOD = Method("lora", apply)
