"""The encoder of all BERT-like families, which differ only in the values of `Architecture`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import keras
from keras import ops

from tfft.backbones.families.family import check_dropped
from tfft.backbones.families.layers import Block, Embeddings
from tfft.backbones.families.unpadding import Repad, Unpad
from tfft.spec import Stage
from tfft.utils.errors import UserError


@dataclass(frozen=True)
class Architecture:
    """Dimensions of a BERT-like encoder.

    Attributes:
        vocabulary, positions, segments: numbers of rows of the embedding tables.
        width: D.
        inner: width between the two dense layers of a block.
        embedding_width: width of the embedding tables if it differs from `width` (ALBERT).
        groups: number of groups of layers that share weights (ALBERT); None: no sharing.
        per_group: number of blocks applied in each layer.
        pad_id: if set, positions count real tokens and begin at `pad_id + 1` (RoBERTa).
        pooler: activation of the pooler; None: no pooler.
        dropped: names of blocks to leave out; the others keep their names.
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
        """Names of the blocks with separate weights, bottom to top."""
        return [f"block_{i}" for i in range((self.groups or self.layers) * self.per_group)]

    @property
    def parameters(self) -> int:
        """Lower bound of the number of weights: its tables and matrices."""
        tables = self.vocabulary + self.positions + self.segments
        # Four matrices of attention, two of the feed-forward layers; norms and biases are left out.
        block = self.width * (4 * self.width + 2 * self.inner)
        return tables * (self.embedding_width or self.width) + len(self.blocks) * block

    def block_order(self) -> list[int]:
        """Return indices into `blocks` in the order of application; shared blocks repeat."""
        groups = self.groups or self.layers
        # As AlbertTransformer: consecutive layers share a group.
        return [
            (layer * groups // self.layers) * self.per_group + inner
            for layer in range(self.layers)
            for inner in range(self.per_group)
        ]

    def build(self, precision: str) -> keras.Model:
        """Build the encoder as a Keras model with random weights.

        The model takes `{token_ids, padding_mask, segment_ids}`, int32 [B, T], and returns
        `{sequence [B, T, D]}` and, with a pooler, `pooled [B, D]`.

        Args:
            precision: a Keras dtype policy.
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
        # Between `Unpad` and `Repad` the blocks may see real tokens alone.
        x = embeddings(inputs["token_ids"], inputs["segment_ids"])
        bias = AttentionBias(name="attention_bias")(inputs["padding_mask"])
        # [B, P + T, D], or [N, D] where `without_padding` is active.
        x = Unpad(dtype=precision, name="pack")(x, bias)
        # With shared weights, a block is applied several times.
        for index in self.block_order():
            if self.blocks[index] in self.dropped:
                continue
            x = blocks[index](x, bias)
        x = Repad(dtype=precision, name="unpack")(x, bias)
        # Heads read the text alone, without the vectors of a prompt.
        x = WithoutPrompt(name="without_prompt")(x)
        features = {"sequence": x}
        if self.pooler is not None:
            pooler = keras.layers.Dense(
                self.width, activation=self.pooler, dtype=precision, name="pooler"
            )
            features["pooled"] = pooler(x[:, 0])  # the first token: [CLS] in BERT
        return keras.Model(inputs, features, name="encoder")

    def stages(self) -> tuple[Stage, ...]:
        """Return the stages, bottom to top."""
        remaining = [name for name in self.blocks if name not in self.dropped]
        names = ["embeddings", *remaining, *(["pooler"] if self.pooler is not None else [])]
        return tuple(Stage(name, f"{name}/") for name in names)

    def with_dropout(self, rate: float) -> "Architecture":
        """Return a copy with this dropout rate everywhere."""
        return replace(self, dropout=rate, attention_dropout=rate)

    def without(self, names: Sequence[str]) -> "Architecture":
        """Return a copy without some blocks.

        Raises:
            UserError: There are no such blocks, or its layers share blocks.
        """
        if self.groups is not None:
            raise UserError("model.surgery.drop: this backbone's layers share their blocks")
        return replace(self, dropped=check_dropped(names, self.blocks))


class AttentionBias(keras.layers.Layer):
    """Layer that turns a padding mask into attention's bias: 0 at tokens, -1e9 at padding.

    Attributes:
        prompt: P, the number of vectors before the text; they get 0.
    """

    prompt = 0

    def __init__(self, **kwargs):
        # float32, because -1e9 is beyond float16.
        super().__init__(dtype="float32", **kwargs)

    def call(self, mask):
        """Return the bias of a mask, int [B, T] -> float32 [B, 1, 1, P + T]."""
        # `expand_dims`, not [:, None, None, :]: LiteRT has no op for the latter.
        bias = (1.0 - ops.expand_dims(ops.cast(mask, "float32"), (1, 2))) * -1e9
        return ops.pad(bias, [(0, 0), (0, 0), (0, 0), (self.prompt, 0)]) if self.prompt else bias


class WithoutPrompt(keras.layers.Layer):
    """Layer that removes the prompt's features.

    Attributes:
        prompt: P, the number of vectors before the text.
    """

    prompt = 0

    def call(self, x):
        """Keep the features of the text, [B, P + T, D] -> [B, T, D]."""
        return x[:, self.prompt :] if self.prompt else x
