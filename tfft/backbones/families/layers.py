"""Layers of BERT encoders, in `keras.ops`.

B rows, T tokens, N tokens without padding, P vectors of a prompt, D width, H heads, d width of a
head. The softmax of attention is computed in float32 whatever the precision.
"""

from collections.abc import Callable

import keras
from keras import ops

from tfft.backbones.families.unpadding import is_unpadded, token_layout
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
    """Return the activation function for a checkpoint's `hidden_act`.

    Raises:
        UserError: The name is unknown.
    """
    if name not in ACTIVATIONS:
        raise UserError(f"config.json: unknown activation {name!r}{nearest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]


class Dropout(keras.layers.Layer):
    """Dropout from eight random bits per element; off if its stage is frozen.

    The rate is rounded to 1/256. Retained elements are scaled by the rounded rate, so the mean is
    exact. Drawing 32 random bits per element, as Keras does, takes more than twice the time.

    Args:
        rate: share of the elements that is dropped, in [0, 1).
        seed: seed of the random generator; None: Keras' global seed.
    """

    disabled_when_frozen = True  # the feature cache checks for this attribute

    def __init__(self, rate: float, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"`rate` must be in [0, 1). Received: rate={rate!r}")
        self.rate = rate
        self._dropped = round(rate * 256)
        self.seed_generator = keras.random.SeedGenerator(seed) if self._dropped else None
        self.built = True

    def call(self, x, training: bool = False):
        """Drop elements in training, [...] -> [...]."""
        if not training or not self.trainable or not self._dropped:
            return x
        size = ops.prod(ops.cast(ops.shape(x), "int32"))
        retained = _random_bytes(size, self.seed_generator) >= self._dropped
        retained = ops.reshape(retained, ops.shape(x))
        return ops.where(retained, x * (256 / (256 - self._dropped)), ops.zeros_like(x))

    def compute_output_shape(self, input_shape):
        """Return the input's shape."""
        return input_shape

    def get_config(self):
        """Return the constructor's arguments."""
        return {**super().get_config(), "rate": self.rate}


def _random_bytes(size, seed_generator):
    """Draw uniform bytes, [size], 0 to 255. On TensorFlow each 32-bit draw gives four."""
    if keras.backend.backend() != "tensorflow":
        return keras.random.randint([size], 0, 256, "int32", seed=seed_generator)
    import tensorflow as tf

    seed = tf.cast(seed_generator.next(), tf.int32)
    draws = tf.random.stateless_uniform([(size + 3) // 4], seed, None, None, tf.int32)
    # `keras.ops.view` does not support a shape that is known only at run time.
    return tf.reshape(tf.bitcast(draws, tf.uint8), [-1])[:size]


class DropPath(Dropout):
    """Stochastic depth: drop a residual branch for random rows; off if its stage is frozen.

    Huang et al. 2016, "Deep Networks with Stochastic Depth".
    """

    def call(self, x, training: bool = False):
        """Drop rows in training, [B, ...] -> [B, ...]."""
        if not training or not self.trainable or not self._dropped:
            return x
        retained = _random_bytes(ops.shape(x)[0], self.seed_generator) >= self._dropped
        # One draw per row, broadcast over the other axes.
        retained = ops.reshape(retained, [-1] + [1] * (len(x.shape) - 1))
        return ops.where(retained, x * (256 / (256 - self._dropped)), ops.zeros_like(x))


class Embeddings(keras.layers.Layer):
    """Sum of token, position and segment embeddings, normalised.

    Args:
        vocabulary, positions, segments: numbers of rows of the tables; 0 segments for none.
        width: D of the tables.
        project: width of the blocks if it differs from `width` (ALBERT), else None.
        pad_id: if set, positions count the tokens that are not this id, and begin at `pad_id + 1`
            (RoBERTa).
        epsilon: of the norm.
        dropout: rate after the norm.
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
        # Returns vectors [B, P, D] that go before the text; see methods/prompt.py.
        self.prompt: keras.layers.Layer | None = None
        self._width = width

    def build(self, _):
        """Create the tables, the norm and the projection."""
        for table in (self.token, self.position, self.segment):
            if table is not None:
                table.build()
        self.norm.build((None, None, self._width))
        if self.project is not None:
            self.project.build((None, None, self._width))
        self.built = True

    def call(self, token_ids, segment_ids, training: bool = False):
        """Embed token and segment ids, int [B, T] -> [B, P + T, D]; P is 0 without a prompt."""
        x = self.token(token_ids)
        if self.prompt is not None:
            x, token_ids, segment_ids = self._prepend_prompt(x, token_ids, segment_ids)
        if self._pad_id is None:
            x = x + self.position(ops.arange(ops.shape(token_ids)[1]))
        else:
            # As transformers' create_position_ids_from_input_ids: padding gets position `pad_id`.
            not_padding = ops.cast(token_ids != self._pad_id, "int32")
            x = x + self.position(ops.cumsum(not_padding, axis=1) * not_padding + self._pad_id)
        if self.segment is not None:
            x = x + self.segment(segment_ids)
        x = self.dropout(self.norm(x), training=training)
        return x if self.project is None else self.project(x)

    def _prepend_prompt(self, x, token_ids, segment_ids):
        """Put the prompt before the text, as tokens of the first segment that are not padding."""
        prompt = self.prompt(x)  # [B, P, D]
        ones = ops.ones(ops.shape(prompt)[:2], "int32")
        # Any id but `pad_id`: only the comparison with it reads these.
        prompt_ids = ones * ((self._pad_id or 0) + 1)
        return (
            ops.concatenate([prompt, x], axis=1),
            ops.concatenate([prompt_ids, ops.cast(token_ids, "int32")], axis=1),
            ops.concatenate([ones * 0, ops.cast(segment_ids, "int32")], axis=1),
        )


class FusedDense(keras.layers.Dense):
    """Dense layer that computes several projections of one input as one product.

    Args:
        parts: names of the projections, in the order of the columns.
        width: number of columns of each.
    """

    def __init__(self, parts: tuple[str, ...], width: int, **kwargs):
        super().__init__(len(parts) * width, **kwargs)
        self.parts = parts


class SelfAttention(keras.layers.Layer):
    """Multi-head self-attention with one product for queries, keys and values.

    Vaswani et al. 2017, "Attention Is All You Need", section 3.2.

    Args:
        width: D.
        heads: H.
        dropout: rate on the attention weights.
        use_bias: whether queries, keys and values have a bias.
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
        # (keys, values, bias) -> the same with P more positions first; see methods/prefix.py
        self.prefix: keras.layers.Layer | None = None

    def build(self, _):
        """Create the two projections."""
        self.qkv.build((None, None, self._width))
        self.out.build((None, None, self._width))
        self.built = True

    def call(self, x, bias=None, training: bool = False):
        """Attend, [B, T, D] -> [B, T, D], or without padding [N, D] -> [N, D].

        Args:
            x: the tokens.
            bias: added to the scores, [B, 1, 1, T]; None for nothing. Required without padding.
            training: whether to apply dropout.
        """
        weights, value = self.weights_and_values(x, bias)
        weights = self.dropout(ops.cast(weights, self.compute_dtype), training=training)
        context = ops.transpose(ops.matmul(weights, value), [0, 2, 1, 3])  # [B, T, H, d]
        rows, tokens = ops.shape(context)[0], ops.shape(context)[1]
        context = ops.reshape(context, [rows, tokens, self._width])
        return self.out(token_layout(bias).unpad(context) if is_unpadded(x) else context)

    def weights_and_values(self, x, bias=None):
        """Return the attention weights, float32 [B, H, T, T], and the values [B, H, T, d]."""
        # Attention needs the rows back: [N, 3 D] -> [B, T, 3 D].
        qkv = token_layout(bias).repad(self.qkv(x)) if is_unpadded(x) else self.qkv(x)
        rows, tokens = ops.shape(qkv)[0], ops.shape(qkv)[1]
        qkv = ops.reshape(qkv, [rows, tokens, 3, self.heads, self.size])
        query, key, value = ops.unstack(ops.transpose(qkv, [2, 0, 3, 1, 4]), 3)  # [B, H, T, d]
        if self.prefix is not None:
            key, value, bias = self.prefix(key, value, bias)
        # [B, H, T, P + T]; P positions of a prefix have keys and values, but no queries.
        scores = ops.matmul(query, ops.transpose(key, [0, 1, 3, 2])) * self._scale
        scores = ops.cast(scores, "float32")
        if bias is not None:
            scores = self.add_bias(scores, bias)
        return ops.softmax(scores, axis=-1), value

    def add_bias(self, scores, bias):
        """Return scores [B, H, T, T] plus the bias [B, 1, 1, T], in float32."""
        # Keras cast the bias to the compute dtype, as all inputs of the layer. Its values, 0 and
        # -1e9, mean the same at any precision.
        return scores + ops.cast(bias, "float32")


class Block(keras.layers.Layer):
    """Encoder block with a norm after each residual sum (post-norm).

    Args:
        width, heads, inner: D, H and the width between the two dense layers.
        activation_name: a key of `ACTIVATIONS`.
        epsilon: of the norms.
        dropout: rate on both residual branches.
        attention_dropout: rate on the attention weights.
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
        """Create all sublayers."""
        shape = (None, None, self._width)
        for layer in (self.attention, self.attention_norm, self.up, self.output_norm):
            layer.build(shape)
        self.down.build((None, None, self._inner))
        self.built = True

    def call(self, x, bias, training: bool = False):
        """Apply the block to x, [B, T, D] or [N, D], with attention's bias [B, 1, 1, T]."""
        attended = self.attention(x, bias, training=training)
        x = self.attention_norm(x + self.attention_dropout(attended, training=training))
        y = self.down(self._activation(self.up(x)))
        return self.output_norm(x + self.output_dropout(y, training=training))
