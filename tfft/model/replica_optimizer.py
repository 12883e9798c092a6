"""Keras optimizers that run in each replica, on gradients that are already reduced.

Keras sums gradients over the replicas inside the optimizer, after clipping, and updates the copies
of a variable through `merge_call`, which may not be inside of a `cond`. So it clips the gradients
of single replicas, and fails with accumulation, averaging and loss scaling. tfft's train step sums
the gradients first, so every replica holds the same gradient. The backend-independent methods of
the optimizer then update each copy in its replica in the same way, without a merge.
"""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from tfft.utils import keras_internals


def make_local(optimizer: keras.optimizers.Optimizer) -> None:
    """Make an optimizer, and those that it wraps, update the copies of the current replica only."""
    for opt in _with_inner(optimizer):
        keras_internals.update_without_merging(opt, _clip_gradients)


def _with_inner(optimizer: keras.optimizers.Optimizer) -> Iterator[Any]:
    """Yield an optimizer and all optimizers that it wraps."""
    yield optimizer
    inner = [getattr(optimizer, "inner_optimizer", None), *getattr(optimizer, "optimizers", [])]
    for opt in inner:
        if opt is not None:
            yield from _with_inner(opt)


def _clip_gradients(self: Any, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
    """Clip like Keras, with the global norm of `global_norm`."""
    # Keras' precedence: `clipnorm` wins over `global_clipnorm`.
    if not self.global_clipnorm or self.clipnorm:
        return keras_internals.clip_like_keras(self, gradients)
    # min(1, clipnorm / norm), without a division by a norm of 0.
    scale = self.global_clipnorm / tf.maximum(_get_norm(self, gradients), self.global_clipnorm)
    return [None if g is None else g * tf.cast(scale, g.dtype) for g in gradients]


@contextmanager
def known_norm(optimizer: Any, gradients: list[tf.Tensor], norm: tf.Tensor) -> Iterator[None]:
    """Make clipping use a norm that was computed already, within the context.

    Args:
        optimizer: clips by global norm, or not at all.
        gradients: to which the norm belongs; clipping of others computes their norm.
        norm: `global_norm` of the gradients.
    """
    optimizer.__dict__["_known_norm"] = gradients, norm  # past Keras' attribute tracking
    try:
        yield
    finally:
        optimizer.__dict__["_known_norm"] = None


def _get_norm(optimizer: Any, gradients: list[tf.Tensor]) -> tf.Tensor:
    known, norm = optimizer.__dict__.get("_known_norm") or ((), None)
    # If the optimizer unscaled or accumulated the gradients first, the norm is not theirs.
    is_known = len(known) == len(gradients) and all(map(operator.is_, known, gradients))
    return norm if is_known else global_norm(gradients)


def global_norm(gradients: list[tf.Tensor]) -> tf.Tensor:
    """Return the L2 norm of all gradients together, float32 []; None entries are skipped."""
    # float32 also for half precision, in which squares overflow and long sums lose small terms.
    squares = [tf.reduce_sum(tf.square(tf.cast(g, tf.float32))) for g in gradients if g is not None]
    return tf.sqrt(tf.add_n(squares))
