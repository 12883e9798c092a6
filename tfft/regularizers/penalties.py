"""L1, L2 and L2-SP, added to the gradient once for each step, before it is clipped.

L2-SP: Li, Grandvalet & Davoine 2018, "Explicit Inductive Bias for Transfer Learning with
Convolutional Networks", equation 3. The reported loss is that of the data alone.
"""

from collections.abc import Callable, Collection
from typing import Any

import keras
import tensorflow as tf

from tfft.config import RegularizationConfig
from tfft.spec import Mask

# (variable's path, its value) -> what is added to its gradient, or None
Penalty = Callable[[str, tf.Tensor], Any]


def build(
    model: keras.Model,
    mask: Mask,
    changed: Collection[str],
    config: RegularizationConfig,
) -> list[Penalty]:
    """The penalties that the section asks for; `changed` paths have no pretrained value."""
    found: list[Penalty] = []
    if config.l1:
        found.append(lambda _, w: config.l1 * tf.sign(w) if len(w.shape) > 1 else None)
    if config.l2:
        found.append(lambda _, w: config.l2 * w if len(w.shape) > 1 else None)
    if config.l2_sp is not None:
        moving = {entry.path for entry in mask.entries if entry.trainable}
        start = {
            v.path: tf.constant(keras.ops.convert_to_numpy(v))
            for v in model.weights
            if v.path in moving and v.path not in changed
        }
        alpha, beta = config.l2_sp.alpha, config.l2_sp.beta
        found.append(lambda path, w: alpha * (w - start[path]) if path in start else beta * w)
    return found
