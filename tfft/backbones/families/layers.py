"""Layers of the BERT kind of encoder, in `keras.ops`.

B rows, T tokens, D width, H heads. Attention, softmax and norms compute in float32 where the
precision is lower elsewhere.
"""

from collections.abc import Callable

import keras
from keras import ops

from tfft.backbones.families.unpadding import is_packed, places
from tfft.utils.errors import UserError, nearest

# Names as in transformers' ACT2FN.
ACTIVATIONS: dict[str, Callable] = {
    "gelu": lambda x: keras.activations.gelu(x, approximate=False),
    "gelu_new": lambda x: keras.activations.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: keras.activations.gelu(x, approximate=True),
    "gelu_fast": lambda x: keras.activations.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * ops.sigmoid(1.702 * x),
    "relu": keras.activations.relu,
    "relu6": keras.activations.relu6,
    "silu": keras.activations.silu,
    "swish": keras.activations.silu,
    "mish": keras.activations.mish,
    "tanh": keras.activations.tanh,
    "sigmoid": keras.activations.sigmoid,
    "linear": keras.activations.linear,
}


def activation(name: str) -> Callable:
    """The function of a checkpoint's `hidden_act`.

    Raises:
        UserError: it is not known here.
    """
    if name not in ACTIVATIONS:
        raise UserError(f"config.json: unknown activation {name!r}{nearest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]


class Dropout(keras.layers.Layer):
    """Dropout from eight random bits an element; off where its stage is frozen.

    The rate is rounded to 1/256, and what is kept is scaled by the rounded rate, so the mean is
    exact. Drawing 32 random bits a float, as Keras does, costs more than twice the time.

    Args:
        rate: the share that is dropped, in [0, 1).
    """

    off_where_frozen = True  # what `prefix` looks for

    def __init__(self, rate: float, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"`rate` must be in [0, 1). Received: rate={rate!r}")
        self.rate = rate
        self._dropped = round(rate * 256)
        self.seed_generator = keras.random.SeedGenerator(seed) if self._dropped else None
        self.built = True

    def call(self, x, training: bool = False):
        """Any shape in, the same out."""
        if not training or not self.trainable or not self._dropped:
            return x
        size = ops.prod(ops.cast(ops.shape(x), "int32"))
        crop_fraction = _random_bytes(size, self.seed_generator) >= self._dropped
        crop_fraction = ops.reshape(crop_fraction, ops.shape(x))
        return ops.where(crop_fraction, x * (256 / (256 - self._dropped)), ops.zeros_like(x))

    def compute_output_shape(self, input_shape):
        """The input's."""
        return input_shape

    def get_config(self):
        """Arguments that rebuild the layer."""
        return {**super().get_config(), "rate": self.rate}


def _random_bytes(size, seed_generator):
    """Uniform uint8 [size]. On TensorFlow four of them come from each 32-bit draw."""
    if keras.backend.backend() != "tensorflow":
        return keras.random.randint([size], 0, 256, "int32", seed=seed_generator)
    import tensorflow as tf

    seed = tf.cast(seed_generator.next(), tf.int32)
    draws = tf.random.stateless_uniform([(size + 3) // 4], seed, None, None, tf.int32)
    # `keras.ops.view` cannot do this for a shape that is known only at run time.
    return tf.reshape(tf.bitcast(draws, tf.uint8), [-1])[:size]


class DropPath(Dropout):
    """Leaves out what a block adds, for whole rows (Huang et al. 2016, "Deep Networks with
    Stochastic Depth"); off where its stage is frozen."""

    def call(self, x, training: bool = False):
        """[B, ...] -> the same shape."""
        if not training or not self.trainable or not self._dropped:
            return x
        crop_fraction = _random_bytes(ops.shape(x)[0], self.seed_generator) >= self._dropped
        crop_fraction = ops.reshape(crop_fraction, [-1] + [1] * (len(x.shape) - 1))
        return ops.where(crop_fraction, x * (256 / (256 - self._dropped)), ops.zeros_like(x))


class Embeddings(keras.layers.Layer):
    """Token, position and segment embeddings, added, normalised.

    Args:
        vocabulary, positions, segments: table sizes; no segments: 0.
        width: D of the tables.
        project: width of the blocks, where it is another (ALBERT), else None.
        pad_id: where positions count tokens that are not this and begin after it (RoBERTa),
            else None.
    """

    def __init__(
        self,
        vocabulary: int,
        positions: int,
        segments: int,
        width: int,
        project: int | None,
        pad_id: int | None,
        epsilon: float,
        dropout: float,
        **kwargs,
    ):
        super().__init__(**kwargs)
        dtype = self.dtype_policy
        self._pad_id = pad_id
        self.token = keras.layers.Embedding(vocabulary, width, dtype=dtype, name="token")
        self.position = keras.layers.Embedding(positions, width, dtype=dtype, name="position")
        self.segment = (
            keras.layers.Embedding(segments, width, dtype=dtype, name="segment")
            if segments
            else None
        )
        self.norm = keras.layers.LayerNormalization(epsilon=epsilon, dtype=dtype, name="norm")
        self.dropout = Dropout(dropout, dtype=dtype, name="dropout")
        self.project = keras.layers.Dense(project, dtype=dtype, name="project") if project else None
        self.prompt: keras.layers.Layer | None = None  # gives vectors [P, D] before the text
        self._width = width

    def build(self, _):
        """Create the tables."""
        for table in (self.token, self.position, self.segment):
            if table is not None:
                table.build()
        self.norm.build((None, None, self._width))
        if self.project is not None:
            self.project.build((None, None, self._width))
        self.built = True

    def call(self, token_ids, segment_ids, training: bool = False):
        """Int [B, T] twice -> [B, P + T, D], P being 0 where there is no prompt."""
        x = self.token(token_ids)
        if self.prompt is not None:
            x, token_ids, segment_ids = self._prompted(x, token_ids, segment_ids)
        if self._pad_id is None:
            x = x + self.position(ops.arange(ops.shape(token_ids)[1]))
        else:
            real = ops.cast(token_ids != self._pad_id, "int32")
            x = x + self.position(ops.cumsum(real, axis=1) * real + self._pad_id)
        if self.segment is not None:
            x = x + self.segment(segment_ids)
        x = self.dropout(self.norm(x), training=training)
        return x if self.project is None else self.project(x)

    def _prompted(self, x, token_ids, segment_ids):
        """The prompt before the text: real tokens (of no id) of the first segment."""
        prompt = self.prompt(x)  # [B, P, D]
        ones = ops.ones(ops.shape(prompt)[:2], "int32")
        unlike_padding = ones * ((self._pad_id or 0) + 1)
        return (
            ops.concatenate([prompt, x], axis=1),
            ops.concatenate([unlike_padding, ops.cast(token_ids, "int32")], axis=1),
            ops.concatenate([ones * 0, ops.cast(segment_ids, "int32")], axis=1),
        )


class FusedDense(keras.layers.Dense):
    """One product for several projections of the same width, side by side.

    Args:
        parts: their names, in the order of the columns.
        width: of each.
    """

    def __init__(self, parts: tuple[str, ...], width: int, **kwargs):
        super().__init__(len(parts) * width, **kwargs)
        self.parts = parts


class SelfAttention(keras.layers.Layer):
    """Multi-head self-attention with one product for queries, keys and values.

    Vaswani et al. 2017, "Attention Is All You Need", section 3.2.

    Args:
        use_bias: whether queries, keys and values have one.
    """

    def __init__(self, width: int, heads: int, dropout: float, use_bias: bool = True, **kwargs):
        super().__init__(**kwargs)
        if width % heads:
            raise UserError(
                f"config.json: hidden size {width} is no multiple of its {heads} attention heads"
            )
        self.heads, self.size = heads, width // heads  # H, d
        self._width = width
        self._scale = (width // heads) ** -0.5
        parts = ("query", "key", "value")
        self.qkv = FusedDense(parts, width, use_bias=use_bias, dtype=self.dtype_policy, name="qkv")
        self.out = keras.layers.Dense(width, dtype=self.dtype_policy, name="out")
        self.dropout = Dropout(dropout, dtype=self.dtype_policy, name="dropout")
        # (keys, values) [B, H, T, d], bias -> the same with more to attend to before them
        self.prefix: keras.layers.Layer | None = None

    def build(self, _):
        """Create the two products."""
        self.qkv.build((None, None, self._width))
        self.out.build((None, None, self._width))
        self.built = True

    def call(self, x, bias=None, training: bool = False):
        """[B, T, D] and what is added to the scores, [B, 1, 1, T], if anything -> [B, T, D].

        Of tokens without padding, with the bias: [N, D] -> [N, D].
        """
        weights, value = self.weights_and_values(x, bias)
        weights = self.dropout(ops.cast(weights, self.compute_dtype), training=training)
        mixed = ops.transpose(ops.matmul(weights, value), [0, 2, 1, 3])
        rows, tokens = ops.shape(mixed)[0], ops.shape(mixed)[1]
        mixed = ops.reshape(mixed, [rows, tokens, self._width])
        return self.out(places(bias).packed(mixed) if is_packed(x) else mixed)

    def weights_and_values(self, x, bias=None):
        """How much of each value goes where, float32 [B, H, T, T], and the values [B, H, T, d]."""
        qkv = places(bias).spread(self.qkv(x)) if is_packed(x) else self.qkv(x)
        rows, tokens = ops.shape(qkv)[0], ops.shape(qkv)[1]
        qkv = ops.reshape(qkv, [rows, tokens, 3, self.heads, self.size])
        query, key, value = ops.unstack(ops.transpose(qkv, [2, 0, 3, 1, 4]), 3)  # [B, H, T, d]
        if self.prefix is not None:
            key, value, bias = self.prefix(key, value, bias)
        scores = ops.matmul(query, ops.transpose(key, [0, 1, 3, 2])) * self._scale
        scores = ops.cast(scores, "float32")
        if bias is not None:
            scores = self.biased(scores, bias)
        return ops.softmax(scores, axis=-1), value

    def biased(self, scores, bias):
        """Scores [B, H, T, T] and the bias -> their sum. The bias came through Keras' casting of
        inputs: 0 or -1e9, whatever the precision."""
        return scores + ops.cast(bias, "float32")


class Block(keras.layers.Layer):
    """One encoder block, norms after the sums.

    Args:
        width, heads, inner: D, H and the width between the two dense layers.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        inner: int,
        activation_name: str,
        epsilon: float,
        dropout: float,
        attention_dropout: float,
        **kwargs,
    ):
        super().__init__(**kwargs)
        dtype = self.dtype_policy
        self._width, self._inner = width, inner
        self._activation = activation(activation_name)
        norm = keras.layers.LayerNormalization
        self.attention = SelfAttention(
            width, heads, attention_dropout, dtype=dtype, name="attention"
        )
        self.attention_norm = norm(epsilon=epsilon, dtype=dtype, name="attention_norm")
        self.up = keras.layers.Dense(inner, dtype=dtype, name="up")
        self.down = keras.layers.Dense(width, dtype=dtype, name="down")
        self.output_norm = norm(epsilon=epsilon, dtype=dtype, name="output_norm")
        self.attention_dropout = Dropout(dropout, dtype=dtype, name="attention_dropout")
        self.output_dropout = Dropout(dropout, dtype=dtype, name="output_dropout")

    def build(self, _):
        """Create everything."""
        shape = (None, None, self._width)
        for layer in (self.attention, self.attention_norm, self.up, self.output_norm):
            layer.build(shape)
        self.down.build((None, None, self._inner))
        self.built = True

    def call(self, x, bias, training: bool = False):
        """[B, T, D] (or [N, D]) and an additive [B, 1, 1, T] -> the same shape."""
        attended = self.attention(x, bias, training=training)
        x = self.attention_norm(x + self.attention_dropout(attended, training=training))
        y = self.down(self._activation(self.up(x)))
        return self.output_norm(x + self.output_dropout(y, training=training))
