"""Adversarial training on token embeddings: FGM and FreeLB.

Miyato, Dai & Goodfellow 2017, "Adversarial Training Methods for Semi-Supervised Text
Classification", equation 4: shift the embeddings of each row by epsilon along the gradient. Zhu et
al. 2020, "FreeLB: Enhanced Adversarial Training for Natural Language Understanding", algorithm 1:
take several such steps and average their gradients, with the same dropout masks in all.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfft.config.regularization import Fgm, FreeLb
from tfft.model import seeds
from tfft.model.wrapping import Call, Order, wrap_call
from tfft.utils import keras_internals
from tfft.utils.errors import UserError


def build(model: keras.Model, config: Fgm | FreeLb) -> "Adversary":
    """Build the adversary of a model, on its embedding table with the most rows.

    Raises:
        UserError: the model has no token embeddings.
    """
    tables = [
        x for x in keras_internals.flat_layers(model) if isinstance(x, keras.layers.Embedding)
    ]
    if not tables:
        raise UserError(
            "regularization.adversarial: needs a text backbone; this model has no token embeddings"
        )
    # Tables of positions and segments are Embedding layers too; the vocabulary has the most rows.
    hook = EmbeddingHook(max(tables, key=lambda table: table.input_dim))
    if isinstance(config, Fgm):
        return FgmAdversary(hook, config.epsilon, config.weight)
    return FreeLbAdversary(model, hook, config.steps, config.step_size, config.epsilon)


class EmbeddingHook:
    """Wrapper around the `call` of an embedding layer that adds an offset to its output.

    Attributes:
        offset: the offset of the last call within a context, watched by the tape.
    """

    def __init__(self, layer: keras.layers.Embedding):
        self._tape: tf.GradientTape | None = None
        self._make_offset: Any = None
        self.offset: Any = None
        wrap_call(layer, self._wrap, Order.OFFSET)

    def _wrap(self, inner: Call) -> Call:
        self._original_call = inner
        return self

    def __call__(self, inputs: Any) -> Any:
        """Return the embeddings, with the offset within a context of `add_offset`."""
        y = self._original_call(inputs)
        if self._tape is None:
            return y
        make_offset = self._make_offset
        # Zeros where nothing is shifted: their gradient is that of the embeddings.
        offset = tf.zeros_like(y) if make_offset is None else tf.cast(make_offset(y), y.dtype)
        # Watched by hand, since the tape watches no tensors by itself.
        self._tape.watch(offset)
        self.offset = offset
        return y + offset

    def add_offset(self, tape: tf.GradientTape, make_offset: Any) -> "EmbeddingHook":
        """Return a context in which calls add an offset.

        Args:
            tape: watches the offset.
            make_offset: embeddings [B, T, D] -> offset of the same shape; None: zeros.
        """
        self._tape, self._make_offset = tape, make_offset
        return self

    def __enter__(self) -> "EmbeddingHook":
        return self

    def __exit__(self, *_: object) -> None:
        self._tape = self._make_offset = None


class Adversary:
    """Base class of what computes gradients in several passes, for `StepOptions.adversary`."""

    def __init__(self, hook: EmbeddingHook):
        self._hook = hook

    def gradients(
        self, model: Any, compute_loss: Callable[[], tuple[tf.Tensor, tf.Tensor]], variables: Any
    ) -> tuple[tf.Tensor, list[tf.Tensor], tf.Tensor]:
        """Compute the gradients of a batch.

        Args:
            model: the `Model`; its optimizer scales the loss.
            compute_loss: runs the model, and returns loss and output.
            variables: to differentiate by.

        Returns:
            Loss of the first pass, gradients of the scaled loss, output of the first pass.
        """
        raise NotImplementedError

    def _pass(
        self, model: Any, compute_loss: Any, variables: Any, make_offset: Any = None
    ) -> tuple[tf.Tensor, list[tf.Tensor], tf.Tensor, tf.Tensor]:
        """Run one forward and backward pass, with an offset on the embeddings if there is one.

        Args:
            model: the `Model`; its optimizer scales the loss.
            compute_loss: runs the model, and returns loss and output.
            variables: to differentiate by.
            make_offset: embeddings [B, T, D] -> their offset; None: zeros.

        Returns:
            Loss, gradients of the variables, output, and gradient of the offset.
        """
        new_tape = tf.GradientTape(watch_accessed_variables=False)
        with new_tape as tape, self._hook.add_offset(tape, make_offset) as hook:
            # As in the plain step: the backward pass ends at the lowest trainable variable or the
            # offset.
            tape.watch(variables)
            loss, y_pred = compute_loss()
            scaled = model.optimizer.scale_loss(loss)
            # Created by the forward pass inside the context.
            offset = hook.offset
        zero = tf.UnconnectedGradients.ZERO
        *gradients, offset_gradient = tape.gradient(
            scaled, [*variables, offset], unconnected_gradients=zero
        )
        return loss, [tf.convert_to_tensor(g) for g in gradients], y_pred, offset_gradient


class FgmAdversary(Adversary):
    """FGM: one clean pass, and one with shifted embeddings.

    Args:
        hook: of the embedding layer.
        epsilon: length of the shift of a row.
        weight: of the gradients of the second pass.
    """

    def __init__(self, hook: EmbeddingHook, epsilon: float, weight: float):
        super().__init__(hook)
        self.epsilon, self.weight = epsilon, weight

    def gradients(self, model, compute_loss, variables):
        """Return loss and output of the clean pass, and the weighted sum of both gradients."""
        loss, clean, y_pred, offset_gradient = self._pass(model, compute_loss, variables)
        # The loss scale and the share of a replica cancel in the direction.
        offset = self.epsilon * direction(offset_gradient)
        # This pass draws its own dropout masks.
        _, adversarial, *_ = self._pass(model, compute_loss, variables, lambda y: offset)
        total = [a + self.weight * b for a, b in zip(clean, adversarial, strict=True)]
        return loss, total, y_pred


class FreeLbAdversary(Adversary):
    """FreeLB: several passes, each with the offset that the gradient of the previous one gives.

    Args:
        model: its seed generators and its optimizer's iterations determine the noise.
        hook: of the embedding layer.
        steps: number of passes.
        step_size: length of an offset's change.
        epsilon: bound of an offset's length.
    """

    def __init__(
        self, model: keras.Model, hook: EmbeddingHook, steps: int, step_size: float, epsilon: float
    ):
        super().__init__(hook)
        self._model = model
        self.steps, self.step_size, self.epsilon = steps, step_size, epsilon

    def gradients(self, model, compute_loss, variables):
        """Return loss and output of the first pass, and the mean gradients of all passes."""
        # Zhu et al., section 3.3: all passes share their dropout masks.
        drawn_seeds = seeds.draw(model)
        make_offset = self._initial_offset
        sums: list[tf.Tensor] | None = None
        for step in range(self.steps):
            with seeds.use(model, drawn_seeds):
                loss, gradients, y_pred, offset_gradient = self._pass(
                    model, compute_loss, variables, make_offset
                )
            offset = self._hook.offset
            # Loss and metrics are those of the first pass.
            if step == 0:
                first = loss, y_pred
            sums = (
                gradients if sums is None else [a + b for a, b in zip(sums, gradients, strict=True)]
            )
            new_offset = self._project(offset + self.step_size * direction(offset_gradient))
            make_offset = _constant(new_offset)
        # Each of K passes counts 1 / K (algorithm 1).
        return first[0], [g / self.steps for g in sums], first[1]

    def _initial_offset(self, y: Any) -> Any:
        """Draw epsilon / sqrt(T D) * U(-1, 1), whose length is at most epsilon."""
        shape = tf.shape(y)
        size = tf.cast(shape[1] * shape[2], y.dtype)
        # The seed contains the step, so that a resumed run draws the same noise, and the replica,
        # so that replicas draw different noise.
        step = tf.cast(tf.convert_to_tensor(self._model.optimizer.iterations), tf.int32)
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group if context else 0
        seed = tf.stack([step, tf.cast(replica, tf.int32)])
        uniform = tf.random.stateless_uniform(shape, seed, -1.0, 1.0, tf.float32)
        return tf.cast(uniform, y.dtype) * self.epsilon * tf.math.rsqrt(size)

    def _project(self, offset: tf.Tensor) -> tf.Tensor:
        """Shorten the offset of each row to at most `epsilon`."""
        length = norm(offset)
        # The lower bound of the length avoids a division by 0.
        return offset * tf.minimum(1.0, self.epsilon / tf.maximum(length, 1e-12))


def _constant(offset: tf.Tensor) -> Callable[[Any], tf.Tensor]:
    return lambda _: offset


def norm(offset: tf.Tensor) -> tf.Tensor:
    """Return the L2 norm of each row of [B, T, D], as [B, 1, 1]."""
    return tf.sqrt(tf.reduce_sum(tf.square(offset), axis=[1, 2], keepdims=True))


def direction(gradient: tf.Tensor) -> tf.Tensor:
    """Return the gradient [B, T, D] with each row scaled to norm 1; rows of zeros stay zero."""
    return ops.stop_gradient(tf.math.divide_no_nan(gradient, norm(gradient)))
