"""Bottleneck adapters: y + up(act(down(y))) after the sublayers of each block.

Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", figure 2: after the
projections of attention and feed-forward, before the residual sum. Pfeiffer et al. 2021,
"AdapterFusion": after the feed-forward only. Here they come before the dropout of the sublayer.
`up` starts at zero, so the model starts with its pretrained outputs.
"""

import keras
from keras import ops

from tfft.config.methods import AdapterMethod
from tfft.model import injection, masks
from tfft.model.injection import Adapter, LinearTarget
from tfft.spec import Method, Phase, Stage

# Each pattern holds tfft's name of the layer and KerasHub's.
_ATTENTION = r"(^|/)(attention/out|attention_output)$"
_FEEDFORWARD = r"(^|/)(down|feedforward_output_dense)$"


class Bottleneck(Adapter):
    """Two dense layers with an activation between them, and a residual connection.

    Args:
        width: width of the bottleneck.
        activation: Keras name of the activation; `gelu` is the exact one, without tanh.
        **kwargs: of the Keras layer.
    """

    def __init__(self, width: int, activation: str, **kwargs):
        super().__init__(**kwargs)
        self._width = width
        self._activation = keras.activations.get(activation)

    def create(self, target: LinearTarget) -> None:
        """Create `down` [outputs, width], `up` [width, outputs] and their biases."""
        width, bottleneck = target.outputs, self._width
        # Houlsby et al. draw both kernels with a standard deviation of 0.01, so that the adapter
        # starts near the identity. With `up` at zero it starts at the identity.
        initializer = keras.initializers.TruncatedNormal(stddev=0.01)
        self.down = self.add_weight(name="down", shape=(width, bottleneck), initializer=initializer)
        self.down_bias = self.add_weight(name="down_bias", shape=(bottleneck,), initializer="zeros")
        self.up = self.add_weight(name="up", shape=(bottleneck, width), initializer="zeros")
        self.up_bias = self.add_weight(name="up_bias", shape=(width,), initializer="zeros")

    def transform_output(self, x, y, training):
        """Return y + up(act(down(y))), [..., outputs]."""
        hidden = self._activation(ops.matmul(y, self.down) + self.down_bias)  # [..., bottleneck]
        return y + ops.matmul(hidden, self.up) + self.up_bias


def apply(
    model: keras.Model, stages: tuple[Stage, ...], config: AdapterMethod
) -> tuple[Phase, ...]:
    """Attach an adapter after each sublayer of `placement`; train the adapters and the head."""
    patterns = [_FEEDFORWARD, *([_ATTENTION] if config.placement == "houlsby" else [])]
    for pattern in patterns:
        injection.attach(
            injection.select_targets(model, pattern, "method"),
            lambda target: Bottleneck(
                config.width, config.activation, dtype=target.policy, name="adapter"
            ),
        )
    return masks.head_and_matches(stages, "re:/adapter/[^/]+$", "adapter")


METHOD = Method("adapter", apply)
