"""One encoder for the whole BERT kind: what differs between families is data, not code."""

from collections.abc import Mapping
from dataclasses import dataclass

import keras
from keras import ops

from tfft.backbones.families.layers import Block, Embeddings
from tfft.spec import Stage


@dataclass(frozen=True)
class Architecture:
    """The numbers of an encoder.

    Attributes:
        groups: how many blocks have weights of their own; the `layers` share them in equal runs
            (ALBERT), and `per_group` blocks are applied in each layer.
        embedding_width: where it differs from `width` (ALBERT), else None.
        pad_id: where positions count real tokens and begin after this id (RoBERTa), else None.
        pooler: activation of the pooler, None where there is none.
        dropped: names of blocks that are left out; the others keep their names.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    inner: int
    positions: int
    segments: int
    activation: str
    epsilon: float
    dropout: float
    attention_dropout: float
    embedding_width: int | None = None
    groups: int | None = None
    per_group: int = 1
    pad_id: int | None = None
    pooler: str | None = "tanh"
    dropped: frozenset[str] = frozenset()

    @property
    def blocks(self) -> list[str]:
        """Names of the blocks with weights of their own, bottom to top."""
        return [f"block_{i}" for i in range((self.groups or self.layers) * self.per_group)]

    def block_order(self) -> list[int]:
        """The blocks in the order in which they are applied."""
        groups = self.groups or self.layers
        return [
            (layer * groups // self.layers) * self.per_group + inner
            for layer in range(self.layers)
            for inner in range(self.per_group)
        ]


def build(a: Architecture, precision: str) -> keras.Model:
    """The encoder as a Keras model with fresh weights.

    Takes `{token_ids, padding_mask, segment_ids}`, int32 [B, T]; returns `{sequence [B, T, D]}`
    and, where there is a pooler, `pooled [B, D]`.
    """
    inputs = {
        name: keras.Input([None], dtype="int32", name=name)
        for name in ("token_ids", "padding_mask", "segment_ids")
    }
    embeddings = Embeddings(
        a.vocabulary,
        a.positions,
        a.segments,
        a.embedding_width or a.width,
        a.width if a.embedding_width else None,
        a.pad_id,
        a.epsilon,
        a.dropout,
        dtype=precision,
        name="embeddings",
    )
    blocks = [
        Block(
            a.width,
            a.heads,
            a.inner,
            a.activation,
            a.epsilon,
            a.dropout,
            a.attention_dropout,
            dtype=precision,
            name=name,
        )
        for name in a.blocks
    ]
    x = embeddings(inputs["token_ids"], inputs["segment_ids"])
    bias = AttentionBias(name="attention_bias")(inputs["padding_mask"])
    for index in a.block_order():
        if a.blocks[index] in a.dropped:
            continue
        x = blocks[index](x, bias)
    x = WithoutPrompt(name="without_prompt")(x)
    features = {"sequence": x}
    if a.pooler is not None:
        pooler = keras.layers.Dense(a.width, activation=a.pooler, dtype=precision, name="pooler")
        features["pooled"] = pooler(x[:, 0])
    return keras.Model(inputs, features, name="encoder")


def stages(a: Architecture) -> tuple[Stage, ...]:
    """Bottom to top."""
    kept = [name for name in a.blocks if name not in a.dropped]
    names = ["embeddings", *kept, *(["pooler"] if a.pooler is not None else [])]
    return tuple(Stage(name, f"{name}/") for name in names)


def features(a: Architecture) -> Mapping[str, int]:
    """Widths of the outputs."""
    return {"sequence": a.width} | ({"pooled": a.width} if a.pooler is not None else {})


class AttentionBias(keras.layers.Layer):
    """Padding mask, int [B, T] -> float32 [B, 1, 1, P + T]: 0 where there is a token, else -1e9.

    Attributes:
        prompt: P, how many vectors stand before the text.
    """

    prompt = 0

    def __init__(self, **kwargs):
        super().__init__(dtype="float32", **kwargs)

    def call(self, mask):
        """See the class."""
        bias = (1.0 - ops.cast(mask, "float32")[:, None, None, :]) * -1e9
        return ops.pad(bias, [(0, 0), (0, 0), (0, 0), (self.prompt, 0)]) if self.prompt else bias


class WithoutPrompt(keras.layers.Layer):
    """[B, P + T, D] -> [B, T, D]: what the blocks made of the text alone.

    Attributes:
        prompt: P, how many vectors stand before the text.
    """

    prompt = 0

    def call(self, x):
        """See the class."""
        return x[:, self.prompt :] if self.prompt else x
