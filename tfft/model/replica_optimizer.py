"""Keras optimizers made right for replicas: each updates its own copy from the same gradient.

Keras sums the gradients within the optimizer, after clipping, and updates the copies through
`merge_call`, which no branch of a `cond` may contain: hence clipping before the all-reduce, and
failures with accumulation, averaging and loss scaling. tfft's step sums the gradients first, so
that every replica holds the same true gradient; then the optimizer's backend-independent methods,
run in each replica, update each copy alike, and nothing is left to merge.
"""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import keras
import tensorflow as tf
from keras.src.optimizers.base_optimizer import BaseOptimizer

_INDEPENDENT = (
    "_apply_weight_decay",
    "_backend_update_step",
    "_backend_increment_gradient_accumulators",
    "_overwrite_model_variables_with_average_value",
)


def make_local(optimizer: keras.optimizers.Optimizer) -> None:
    """Let an optimizer, and those that it wraps, update the copies of the replica it runs in."""
    for one in _with_inner(optimizer):
        for name in _INDEPENDENT:
            # A subclass of our own or the user's may define its own: that stays.
            if getattr(type(one), name) is getattr(keras.optimizers.Optimizer, name):
                setattr(one, name, MethodType(getattr(BaseOptimizer, name), one))
        one._clip_gradients = MethodType(_clip_gradients, one)
        if isinstance(one, keras.optimizers.LossScaleOptimizer):
            one._tf_apply = one._common_apply
        value = one._iterations.value
        if isinstance(value, tf.distribute.DistributedValues):
            # "Only the first replica" would have to be asked by a merge call.
            value._aggregation = tf.VariableAggregation.NONE


def _with_inner(optimizer: keras.optimizers.Optimizer) -> Iterator[Any]:
    yield optimizer
    inner = [getattr(optimizer, "inner_optimizer", None), *getattr(optimizer, "optimizers", [])]
    for one in inner:
        if one is not None:
            yield from _with_inner(one)


def _clip_gradients(self: Any, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
    """Keras' clipping, the global norm being computed by `global_norm`."""
    if not self.global_clipnorm or self.clipnorm:
        return type(self)._clip_gradients(self, gradients)
    scale = self.global_clipnorm / tf.maximum(_norm_of(self, gradients), self.global_clipnorm)
    return [None if g is None else g * tf.cast(scale, g.dtype) for g in gradients]


@contextmanager
def norm_known(optimizer: Any, gradients: list[tf.Tensor], norm: tf.Tensor) -> Iterator[None]:
    """Within: clipping by the global norm of these gradients takes this one."""
    optimizer.__dict__["_known_norm"] = gradients, norm  # past Keras' tracking of attributes
    try:
        yield
    finally:
        optimizer.__dict__["_known_norm"] = None


def _norm_of(optimizer: Any, gradients: list[tf.Tensor]) -> tf.Tensor:
    known, norm = getattr(optimizer, "_known_norm", None) or ((), None)
    # An optimizer may have scaled or accumulated the gradients: then they are others.
    same = len(known) == len(gradients) and all(map(operator.is_, known, gradients))
    return norm if same else global_norm(gradients)


def global_norm(gradients: list[tf.Tensor]) -> tf.Tensor:
    """The norm of all gradients together, float32."""
    squares = [tf.reduce_sum(tf.square(tf.cast(g, tf.float32))) for g in gradients if g is not None]
    return tf.sqrt(tf.add_n(squares))
