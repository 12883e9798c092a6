"""Prefix tuning: trained keys and values in every attention, before those of the text.

Li & Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation"; for encoders and
without reparametrization Liu et al. 2022, "P-Tuning v2".
"""

import keras
from keras import ops

from tfft.backbones.families.layers import SelfAttention
from tfft.config.methods import PrefixMethod
from tfft.model import injection, masks
from tfft.spec import Method, Phase, Stage
from tfft.utils.errors import UserError


class Prefix(keras.layers.Layer):
    """Keys and values of `length` positions, [H, P, d] each."""

    def __init__(self, length: int, heads: int, size: int, **kwargs):
        super().__init__(**kwargs)
        self._length = length
        shape = (heads, length, size)
        small = keras.initializers.RandomNormal(stddev=0.02)
        self.key = self.add_weight(name="key", shape=shape, initializer=small)
        self.value = self.add_weight(name="value", shape=shape, initializer=small)
        self.built = True

    def call(self, key, value, bias=None):
        """[B, H, T, d] twice and a bias [B, 1, 1, T] or None -> the same with P + T positions."""
        return (
            ops.concatenate([_for_each_row(self.key, key), key], axis=2),
            ops.concatenate([_for_each_row(self.value, value), value], axis=2),
            None if bias is None else ops.pad(bias, [*[(0, 0)] * 3, (self._length, 0)]),
        )


def _for_each_row(prefix, like):
    """[H, P, d] -> [B, H, P, d]."""
    prefix = ops.cast(prefix, like.dtype)[None]
    return ops.tile(prefix, [ops.shape(like)[0], 1, 1, 1])


def apply(model: keras.Model, stages: tuple[Stage, ...], config: PrefixMethod) -> tuple[Phase, ...]:
    """Give every attention a prefix."""
    found = [x for x in model._flatten_layers() if isinstance(x, SelfAttention)]
    if not found:
        raise UserError("method: prefix is for hf: backbones only, and of them for transformers")
    for attention in found:
        path = attention.qkv.kernel.path.removesuffix("/qkv/kernel")
        with injection.scoped(path):
            prefix = Prefix(
                config.length,
                attention.heads,
                attention.size,
                dtype=attention.dtype_policy,
                name="prefix",
            )
        injection.fit(attention, "prefix", prefix)
    return masks.head_and(stages, "re:/prefix/[^/]+$", "prefix")


METHOD = Method("prefix", apply, identity=False)
