"""Tokens without padding: what an export computes on.

Rows of a batch are as long as the longest of them, and in a batch of 32 questions four tenths of
the tokens may be padding. All layers but attention look at one token at a time: between `Unpad` and
`Repad` they get the real ones alone, [N, D], and attention spreads them out over the rows for
itself. Products of two axes also run as one op with their bias and activation.

Off until `packed`: how many tokens are real is known only when a batch is there, which XLA (TPUs)
and runtimes with fixed shapes do not take. Zeng et al. 2022, "Boosting Distributed Training
Performance of the Unpadded BERT Model", do the same in training.

B rows, T tokens each (a prompt's vectors before the text count too), N real ones, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops


@dataclass(frozen=True)
class Places:
    """Where the tokens of a packed batch belong.

    Attributes:
        rows, tokens: B and T.
        taken: of each token, its place in [B * T], int [N].
        given: of each place, the token that goes there, int [B * T]; where none does, the one
            before it.
    """

    rows: Any
    tokens: Any
    taken: Any
    given: Any

    def packed(self, x):
        """[B, T, D] -> [N, D]."""
        return ops.take(ops.reshape(x, [-1, x.shape[-1]]), self.taken, axis=0)

    def spread(self, x):
        """[N, D] -> [B, T, D], with the features of the one before where there is none."""
        return ops.reshape(ops.take(x, self.given, axis=0), [self.rows, self.tokens, x.shape[-1]])


def places(bias) -> Places:
    """Of the real tokens, those that attention's bias, [B, 1, 1, T], does not hide; and of the
    first of each row in any case. So a row of padding alone has an answer too, and what stands in
    for padding never comes from another row."""
    rows, tokens = ops.shape(bias)[0], ops.shape(bias)[3]
    shown = ops.reshape(bias, [rows, tokens]) > -1
    real = ops.logical_or(shown, ops.arange(tokens) == 0)
    real = ops.cast(ops.reshape(real, [-1]), "int32")
    return Places(rows, tokens, ops.nonzero(real)[0], ops.cumsum(real) - 1)


def is_packed(x) -> bool:
    """Whether these are tokens without rows."""
    return len(x.shape) == 2


class Unpad(keras.layers.Layer):
    """[B, T, D] and attention's bias -> [N, D] where it is on, else as it is."""

    on = False

    def call(self, x, bias):
        """See the class."""
        return places(bias).packed(x) if self.on else x


class Repad(keras.layers.Layer):
    """[N, D] and attention's bias -> [B, T, D]; as it is where it has rows already."""

    def call(self, x, bias):
        """See the class."""
        return places(bias).spread(x) if is_packed(x) else x


@contextmanager
def packed(model: keras.Model) -> Iterator[None]:
    """Within: the encoders of a model whose families pack do it. For graphs of any shape."""
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, Unpad)]
    for layer in layers:
        layer.on = True
    try:
        yield
    finally:
        for layer in layers:
            layer.on = False
