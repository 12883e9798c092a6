"""Bottleneck adapters: y + up(act(down(y))) behind the sublayers of each block.

Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", figure 2: behind the
projections of attention and feed-forward, before the sum with the residual. Pfeiffer et al. 2021,
"AdapterFusion": behind the feed-forward alone. Here they stand before the sublayer's dropout.
`up` starts at zero, so that the model starts as it was.
"""

import keras
from keras import ops

from tfft.config.methods import AdapterMethod
from tfft.model import injection, masks
from tfft.model.injection import Adapter, LinearTarget
from tfft.spec import Method, Phase, Stage

_ATTENTION = r"(^|/)(attention/out|attention_output)$"
_FEEDFORWARD = r"(^|/)(down|feedforward_output_dense)$"


class Bottleneck(Adapter):
    """Two dense layers with an activation between them, added to what they read.

    Args:
        width: between them.
        activation: its name; `gelu` is the exact one.
    """

    def __init__(self, width: int, activation: str, **kwargs):
        super().__init__(**kwargs)
        self._width = width
        self._activation = keras.activations.get(activation)

    def create(self, projection: LinearTarget) -> None:
        """Houlsby et al. start near zero, with a deviation of 0.01; `up` at zero is exact."""
        width, inner = projection.outputs, self._width
        small = keras.initializers.TruncatedNormal(stddev=0.01)
        self.down = self.add_weight(name="down", shape=(width, inner), initializer=small)
        self.down_bias = self.add_weight(name="down_bias", shape=(inner,), initializer="zeros")
        self.up = self.add_weight(name="up", shape=(inner, width), initializer="zeros")
        self.up_bias = self.add_weight(name="up_bias", shape=(width,), initializer="zeros")

    def after(self, x, y, training):
        """[..., outputs] -> the same."""
        inner = self._activation(ops.matmul(y, self.down) + self.down_bias)
        return y + ops.matmul(inner, self.up) + self.up_bias


def apply(
    model: keras.Model, stages: tuple[Stage, ...], config: AdapterMethod
) -> tuple[Phase, ...]:
    """Attach an adapter behind each sublayer that `placement` means."""
    patterns = [_FEEDFORWARD, *([_ATTENTION] if config.placement == "houlsby" else [])]
    for pattern in patterns:
        injection.attach(
            injection.chosen(model, pattern, "method"),
            lambda target: Bottleneck(
                config.width, config.activation, dtype=target.policy, name="adapter"
            ),
        )
    return masks.head_and(stages, "re:/adapter/[^/]+$", "adapter")


METHOD = Method("adapter", apply)
