"""Adversarial training on the embedded text: FGM and FreeLB.

Miyato, Dai & Goodfellow 2017, "Adversarial Training Methods for Semi-Supervised Text
Classification", equation 4: each row's embeddings are moved by epsilon along the gradient. Zhu et
al. 2020, "FreeLB: Enhanced Adversarial Training for Natural Language Understanding", algorithm 1:
several such steps, of which every one gives a gradient; dropout draws the same masks in all.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfft.config.regularization import Fgm, FreeLb
from tfft.model import seeds
from tfft.utils.errors import UserError

# (offset of the embeddings or None) -> (loss, gradients of variables and of the offset, output)
Pass = Callable[[Any], tuple[tf.Tensor, list[tf.Tensor], tf.Tensor, tf.Tensor]]


def build(model: keras.Model, config: Fgm | FreeLb) -> "Adversary":
    """The adversary of a model, which looks at its largest embedding table.

    Raises:
        UserError: the model embeds no tokens.
    """
    tables = [x for x in model._flatten_layers() if isinstance(x, keras.layers.Embedding)]
    if not tables:
        raise UserError("regularization.adversarial: the model has no token embeddings")
    seam = EmbeddingHook(max(tables, key=lambda table: table.input_dim))
    if isinstance(config, Fgm):
        return FastGradient(seam, config.epsilon, config.weight)
    return FreeLarge(model, seam, config.steps, config.step_size, config.epsilon)


class EmbeddingHook:
    """Adds an offset to what an embedding layer puts out, while one is set."""

    def __init__(self, layer: keras.layers.Embedding):
        self._original = layer.call
        self._tape: tf.GradientTape | None = None
        self._given: Any = None
        self.offset: Any = None
        layer.call = self

    def __call__(self, inputs: Any) -> Any:
        """As the layer's own call."""
        y = self._original(inputs)
        if self._tape is None:
            return y
        given = tf.zeros_like(y) if self._given is None else tf.cast(self._given(y), y.dtype)
        self._tape.watch(given)
        self.offset = given
        return y + given

    def within(self, tape: tf.GradientTape, given: Any) -> "EmbeddingHook":
        """Use `given` (embedded tokens [B, T, D] -> an offset; None: zeros) while in the block."""
        self._tape, self._given = tape, given
        return self

    def __enter__(self) -> "EmbeddingHook":
        return self

    def __exit__(self, *_: object) -> None:
        self._tape = self._given = None


class Adversary:
    """Several passes over a batch, for `model.step.Model.adversary`."""

    def __init__(self, seam: EmbeddingHook):
        self._seam = seam

    def gradients(
        self, model: Any, loss_of: Callable[[], tuple[tf.Tensor, tf.Tensor]], variables: Any
    ) -> tuple[tf.Tensor, list[tf.Tensor], tf.Tensor]:
        """Loss, gradients of the (scaled) loss and output of the first pass."""
        raise NotImplementedError

    def _pass(
        self, model: Any, loss_of: Any, variables: Any, given: Any = None
    ) -> tuple[tf.Tensor, list[tf.Tensor], tf.Tensor, tf.Tensor]:
        watching = tf.GradientTape(watch_accessed_variables=False)
        with watching as tape, self._seam.within(tape, given) as seam:
            tape.watch(variables)
            loss, y_pred = loss_of()
            scaled = model.optimizer.scale_loss(loss)
            offset = seam.offset
        zero = tf.UnconnectedGradients.ZERO
        *found, by_offset = tape.gradient(scaled, [*variables, offset], unconnected_gradients=zero)
        return loss, [tf.convert_to_tensor(g) for g in found], y_pred, by_offset


class FastGradient(Adversary):
    """FGM: one clean pass, one with the embeddings moved by `epsilon`; see the module."""

    def __init__(self, seam: EmbeddingHook, epsilon: float, weight: float):
        super().__init__(seam)
        self.epsilon, self.weight = epsilon, weight

    def gradients(self, model, loss_of, variables):
        """See the class."""
        loss, clean, y_pred, by_offset = self._pass(model, loss_of, variables)
        step = self.epsilon * direction(by_offset)
        _, moved, *_ = self._pass(model, loss_of, variables, lambda y: step)
        total = [a + self.weight * b for a, b in zip(clean, moved, strict=True)]
        return loss, total, y_pred


class FreeLarge(Adversary):
    """FreeLB; see the module."""

    def __init__(
        self, model: keras.Model, seam: EmbeddingHook, steps: int, step_size: float, epsilon: float
    ):
        super().__init__(seam)
        self._model = model
        self.steps, self.step_size, self.epsilon = steps, step_size, epsilon

    def gradients(self, model, loss_of, variables):
        """The mean over the steps; loss and output are those of the first."""
        drawn = seeds.draw(model)
        offset = self._first
        sums: list[tf.Tensor] | None = None
        for at in range(self.steps):
            with seeds.given(model, drawn):
                loss, found, y_pred, by_offset = self._pass(model, loss_of, variables, offset)
            used = self._seam.offset
            if at == 0:
                first = loss, y_pred
            sums = found if sums is None else [a + b for a, b in zip(sums, found, strict=True)]
            moved = self._within_ball(used + self.step_size * direction(by_offset))
            offset = _always(moved)
        return first[0], [g / self.steps for g in sums], first[1]

    def _first(self, y: Any) -> Any:
        """Uniform, of the length epsilon at most: epsilon / sqrt(T D) * U(-1, 1)."""
        shape = tf.shape(y)
        size = tf.cast(shape[1] * shape[2], y.dtype)
        # By the step, so that a resumed run draws the same; by the replica, so that they differ.
        step = tf.cast(tf.convert_to_tensor(self._model.optimizer.iterations), tf.int32)
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group if context else 0
        seed = tf.stack([step, tf.cast(replica, tf.int32)])
        uniform = tf.random.stateless_uniform(shape, seed, -1.0, 1.0, tf.float32)
        return tf.cast(uniform, y.dtype) * self.epsilon * tf.math.rsqrt(size)

    def _within_ball(self, offset: tf.Tensor) -> tf.Tensor:
        length = norm(offset)
        return offset * tf.minimum(1.0, self.epsilon / tf.maximum(length, 1e-12))


def _always(offset: tf.Tensor) -> Callable[[Any], tf.Tensor]:
    return lambda _: offset


def norm(offset: tf.Tensor) -> tf.Tensor:
    """Of each row's [T, D], as [B, 1, 1]."""
    return tf.sqrt(tf.reduce_sum(tf.square(offset), axis=[1, 2], keepdims=True))


def direction(gradient: tf.Tensor) -> tf.Tensor:
    """The gradient of each row at length 1; zero where it is zero."""
    return ops.stop_gradient(tf.math.divide_no_nan(gradient, norm(gradient)))
