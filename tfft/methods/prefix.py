"""Prefix tuning: trainable keys and values in every attention layer, before those of the text.

Li & Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation"; for encoders and
without reparametrization Liu et al. 2022, "P-Tuning v2".
"""

import keras
from keras import ops

from tfft.backbones.families.layers import SelfAttention
from tfft.config.methods import PrefixMethod
from tfft.model import injection, masks
from tfft.spec import Method, Phase, Stage
from tfft.utils import keras_internals
from tfft.utils.errors import UserError


class Prefix(keras.layers.Layer):
    """Trainable keys and values of a prefix, [H, P, d] each.

    Args:
        length: P, positions of the prefix.
        heads: H, attention heads.
        size: d, width of a head.
        **kwargs: of the Keras layer.
    """

    def __init__(self, length: int, heads: int, size: int, **kwargs):
        super().__init__(**kwargs)
        self._length = length
        shape = (heads, length, size)
        # Not zero, so `identity=False` below: attention to the prefix changes the output at once.
        initializer = keras.initializers.RandomNormal(stddev=0.02)
        self.key = self.add_weight(name="key", shape=shape, initializer=initializer)
        self.value = self.add_weight(name="value", shape=shape, initializer=initializer)
        self.built = True

    def call(self, key, value, bias=None):
        """Prepend the prefix.

        Args:
            key: [B, H, T, d].
            value: [B, H, T, d].
            bias: attention bias [B, 1, 1, T], or None.

        Returns:
            The three with P + T positions.
        """
        return (
            ops.concatenate([_repeat_for_rows(self.key, key), key], axis=2),  # [B, H, P + T, d]
            ops.concatenate([_repeat_for_rows(self.value, value), value], axis=2),
            # A bias of 0: every token attends to the prefix.
            None if bias is None else ops.pad(bias, [*[(0, 0)] * 3, (self._length, 0)]),
        )


def _repeat_for_rows(prefix, tokens):
    """Repeat a prefix [H, P, d] for each row of `tokens`: [B, H, P, d] in their dtype."""
    prefix = ops.cast(prefix, tokens.dtype)[None]
    return ops.tile(prefix, [ops.shape(tokens)[0], 1, 1, 1])


def apply(model: keras.Model, stages: tuple[Stage, ...], config: PrefixMethod) -> tuple[Phase, ...]:
    """Install a prefix in every attention layer; train the prefixes and the head.

    Raises:
        UserError: the model has no attention layer of tfft's own architectures.
    """
    # Only tfft's own attention reads the attribute `prefix`.
    attentions = [x for x in keras_internals.flat_layers(model) if isinstance(x, SelfAttention)]
    if not attentions:
        raise UserError("method: prefix needs a transformer loaded with hf:")
    for attention in attentions:
        # The path of the block's variables, so that the prefix belongs to the block's stage.
        path = attention.qkv.kernel.path.removesuffix("/qkv/kernel")
        with injection.variable_scope(path):
            prefix = Prefix(
                config.length,
                attention.heads,
                attention.size,
                dtype=attention.dtype_policy,
                name="prefix",
            )
        injection.install(attention, "prefix", prefix)
    return masks.head_and_matches(stages, "re:/prefix/[^/]+$", "prefix")


METHOD = Method("prefix", apply, identity=False)
