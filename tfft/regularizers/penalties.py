"""L1, L2 and L2-SP penalties, added to the gradients once per step, before clipping.

L2-SP: Li, Grandvalet & Davoine 2018, "Explicit Inductive Bias for Transfer Learning with
Convolutional Networks", equation 3. The reported loss does not include penalties.
"""

from collections.abc import Callable, Collection
from typing import Any

import keras
import tensorflow as tf

from tfft.config import RegularizationConfig
from tfft.spec import Mask

# (path of a variable, its value) -> term to add to its gradient, or None
Penalty = Callable[[str, tf.Tensor], Any]


def build(
    model: keras.Model,
    mask: Mask,
    changed: Collection[str],
    config: RegularizationConfig,
) -> tuple[Penalty, ...]:
    """Build the penalties of the config.

    Args:
        model: its present values are the starting point of L2-SP.
        mask: variables that are trainable in any phase.
        changed: paths of variables without pretrained values; L2-SP pulls them towards 0.
        config: section `regularization`. L1 and L2 leave out vectors: biases and norms.
    """
    # Gradients of l1 |w|, of l2 / 2 |w|^2, and of the two terms of equation 3.
    penalties: list[Penalty] = []
    if config.l1:
        penalties.append(lambda _, w: config.l1 * tf.sign(w) if len(w.shape) > 1 else None)
    if config.l2:
        penalties.append(lambda _, w: config.l2 * w if len(w.shape) > 1 else None)
    if config.l2_sp is not None:
        trainable = {entry.path for entry in mask.entries if entry.trainable}
        # The model is built before a checkpoint is restored, so these are the pretrained values
        # also in a resumed run. Constants, which need not be saved.
        start = {
            v.path: tf.constant(keras.ops.convert_to_numpy(v))
            for v in model.weights
            if v.path in trainable and v.path not in changed
        }
        alpha, beta = config.l2_sp.alpha, config.l2_sp.beta
        # Everything without a pretrained value (head, adapters) is pulled towards 0 with beta.
        penalties.append(lambda path, w: alpha * (w - start[path]) if path in start else beta * w)
    return tuple(penalties)
