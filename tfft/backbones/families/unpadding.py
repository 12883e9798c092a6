"""Encoders without padding, used in exported graphs.

All rows of a batch are padded to the longest. In a batch of 32 questions, 40 % of the tokens may be
padding. All layers but attention process one token at a time. Between `Unpad` and `Repad` they get
only the real tokens, [N, D]; attention restores the rows internally. Matrix products of rank 2 are
also fused into one op with their bias and activation.

It is off except within `without_padding`: the number of real tokens is dynamic, which XLA and
runtimes with fixed shapes do not support. Zeng et al. 2022, "Boosting Distributed Training
Performance of the Unpadded BERT Model", do the same in training.

B rows, T tokens per row (including the vectors of a prompt), N real tokens, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from tfft.utils import keras_internals


@dataclass(frozen=True)
class TokenLayout:
    """Indices between a padded batch, [B, T], and its real tokens, [N].

    Attributes:
        rows, tokens: B and T.
        flat_positions: position of each real token in the flattened batch, int [N], below B * T.
        token_indices: index of the real token at each flattened position, int [B * T], below N; at
            padding, that of the last real token before it.
    """

    rows: Any
    tokens: Any
    flat_positions: Any
    token_indices: Any

    def unpad(self, x):
        """Select the real tokens, [B, T, D] -> [N, D]."""
        # [B * T, D] -> [N, D]
        return ops.take(ops.reshape(x, [-1, x.shape[-1]]), self.flat_positions, axis=0)

    def repad(self, x):
        """Restore the rows, [N, D] -> [B, T, D]. Padding repeats the real token before it."""
        # [N, D] -> [B * T, D] -> [B, T, D]
        return ops.reshape(
            ops.take(x, self.token_indices, axis=0), [self.rows, self.tokens, x.shape[-1]]
        )


def token_layout(bias) -> TokenLayout:
    """Return the layout of the real tokens, those that attention's bias, [B, 1, 1, T], leaves at 0.

    The first token of each row always counts as real. A row of padding alone then still has
    features, and `repad` never fills padding from another row.
    """
    rows, tokens = ops.shape(bias)[0], ops.shape(bias)[3]
    unmasked = ops.reshape(bias, [rows, tokens]) > -1  # [B, T]; the bias is 0 or -1e9
    present = ops.logical_or(unmasked, ops.arange(tokens) == 0)
    present = ops.cast(ops.reshape(present, [-1]), "int32")  # [B * T]
    # The number of real tokens up to a position, minus one, is the index of the last of them.
    return TokenLayout(rows, tokens, ops.nonzero(present)[0], ops.cumsum(present) - 1)


def is_unpadded(x) -> bool:
    """Return whether a tensor holds tokens without rows, [N, D]."""
    return len(x.shape) == 2


class Unpad(keras.layers.Layer):
    """Layer that removes padding if enabled, else passes its input on.

    Attributes:
        enabled: set by `without_padding`.
    """

    enabled = False

    def call(self, x, bias):
        """Remove padding, [B, T, D] and attention's bias [B, 1, 1, T] -> [N, D]."""
        return token_layout(bias).unpad(x) if self.enabled else x


class Repad(keras.layers.Layer):
    """Restore the rows that `Unpad` removed; an input that has rows is returned unchanged."""

    def call(self, x, bias):
        """Restore rows, [N, D] and attention's bias [B, 1, 1, T] -> [B, T, D]."""
        return token_layout(bias).repad(x) if is_unpadded(x) else x


@contextmanager
def without_padding(model: keras.Model) -> Iterator[None]:
    """Enable the model's `Unpad` layers within the context, to trace a graph for dynamic shapes."""
    layers = [x for x in keras_internals.flat_layers(model) if isinstance(x, Unpad)]
    for layer in layers:
        layer.enabled = True
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = False
