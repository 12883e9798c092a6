"""Mixout: in each step a random share of every kernel is the pretrained one.

Lee, Cho & Kang 2020, "Mixout: Effective Regularization to Finetune Large-scale Pretrained Language
Models", equation 3: the mixture is corrected so that its mean is the trained kernel.
"""

import keras
import numpy as np
from keras import ops

from tfft.model import injection
from tfft.spec import Mask
from tfft.utils.errors import UserError


class Mixed(keras.layers.Layer):
    """Stands in for the product of a layer.

    Args:
        hooked: gives the trained kernel, [inputs, outputs].
        pretrained: the kernel that is mixed in.
        share: of it.
    """

    def __init__(self, trained, pretrained: np.ndarray, share: float, **kwargs):
        super().__init__(**kwargs)
        self._trained, self._share = trained, share
        # A constant, not a variable: it is in the backbone's files.
        self._pretrained = ops.convert_to_tensor(pretrained)
        self.seed_generator = keras.random.SeedGenerator()
        self.built = True

    def kernel(self):
        """The trained kernel."""
        return self._trained()

    def product(self, x, training):
        """[..., inputs] -> [..., outputs]."""
        kernel = self._trained()
        if training:
            draws = keras.random.uniform(ops.shape(kernel), seed=self.seed_generator)
            start = ops.cast(self._pretrained, kernel.dtype)
            mixed = ops.where(draws < self._share, start, kernel)
            kernel = (mixed - self._share * start) / (1 - self._share)
        return ops.matmul(x, ops.cast(kernel, x.dtype))


def attach(model: keras.Model, mask: Mask, share: float) -> None:
    """Mix every kernel of the backbone that moves.

    Raises:
        UserError: none does.
    """
    moving = {entry.path for entry in mask.entries if entry.trainable}
    layers = {
        id(p.layer): p.layer
        for p in injection.linear_targets(model)
        if not p.name.startswith("head/") and f"{injection.path(p.layer)}/kernel" in moving
    }
    if not layers:
        raise UserError("regularization.mixout: no kernel of the backbone moves: nothing to mix")
    for layer in layers.values():
        injection.replace_matmul(
            layer,
            lambda trained, value: Mixed(trained, value, share, name="mixout"),
        )
