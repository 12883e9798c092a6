"""One encoder for the whole BERT kind: what differs between families is data, not code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import keras
from keras import ops

from tfft.backbones.families.family import droppable
from tfft.backbones.families.layers import Block, Embeddings
from tfft.backbones.families.unpadding import Repad, Unpad
from tfft.spec import Stage
from tfft.utils.errors import UserError


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

    @property
    def parameters(self) -> int:
        """How many weights it has at least: those of its tables and matrices."""
        tables = self.vocabulary + self.positions + self.segments
        block = self.width * (4 * self.width + 2 * self.inner)
        return tables * (self.embedding_width or self.width) + len(self.blocks) * block

    def block_order(self) -> list[int]:
        """The blocks in the order in which they are applied."""
        groups = self.groups or self.layers
        return [
            (layer * groups // self.layers) * self.per_group + inner
            for layer in range(self.layers)
            for inner in range(self.per_group)
        ]

    def build(self, precision: str) -> keras.Model:
        """The encoder as a Keras model with fresh weights.

        Takes `{token_ids, padding_mask, segment_ids}`, int32 [B, T]; returns `{sequence [B, T, D]}`
        and, where there is a pooler, `pooled [B, D]`.
        """
        inputs = {
            name: keras.Input([None], dtype="int32", name=name)
            for name in ("token_ids", "padding_mask", "segment_ids")
        }
        embeddings = Embeddings(
            self.vocabulary,
            self.positions,
            self.segments,
            self.embedding_width or self.width,
            self.width if self.embedding_width else None,
            self.pad_id,
            self.epsilon,
            self.dropout,
            dtype=precision,
            name="embeddings",
        )
        blocks = [
            Block(
                self.width,
                self.heads,
                self.inner,
                self.activation,
                self.epsilon,
                self.dropout,
                self.attention_dropout,
                dtype=precision,
                name=name,
            )
            for name in self.blocks
        ]
        x = embeddings(inputs["token_ids"], inputs["segment_ids"])
        bias = AttentionBias(name="attention_bias")(inputs["padding_mask"])
        x = Unpad(dtype=precision, name="pack")(x, bias)
        for index in self.block_order():
            if self.blocks[index] in self.dropped:
                continue
            x = blocks[index](x, bias)
        x = Repad(dtype=precision, name="unpack")(x, bias)
        x = WithoutPrompt(name="without_prompt")(x)
        features = {"sequence": x}
        if self.pooler is not None:
            pooler = keras.layers.Dense(
                self.width, activation=self.pooler, dtype=precision, name="pooler"
            )
            features["pooled"] = pooler(x[:, 0])
        return keras.Model(inputs, features, name="encoder")

    def stages(self) -> tuple[Stage, ...]:
        """Bottom to top."""
        kept = [name for name in self.blocks if name not in self.dropped]
        names = ["embeddings", *kept, *(["pooler"] if self.pooler is not None else [])]
        return tuple(Stage(name, f"{name}/") for name in names)

    def features(self) -> Mapping[str, int]:
        """Widths of the outputs."""
        return {"sequence": self.width} | (
            {"pooled": self.width} if self.pooler is not None else {}
        )

    def with_dropout(self, rate: float) -> "Architecture":
        """With this rate everywhere."""
        return replace(self, dropout=rate, attention_dropout=rate)

    def without(self, names: Sequence[str]) -> "Architecture":
        """With some blocks left out."""
        if self.groups is not None:
            raise UserError("model.surgery.drop: this backbone's layers share their blocks")
        return replace(self, dropped=droppable(names, self.blocks))


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
        # Not [:, None, None, :]: LiteRT has no op for it.
        bias = (1.0 - ops.expand_dims(ops.cast(mask, "float32"), (1, 2))) * -1e9
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
