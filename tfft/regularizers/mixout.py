"""Mixout: replace random elements of every kernel by the pretrained ones, in each step.

Lee, Cho & Kang 2020, "Mixout: Effective Regularization to Finetune Large-scale Pretrained Language
Models", equation 3: the mixture is corrected so that its expectation is the trained kernel.
"""

import keras
import numpy as np
from keras import ops

from tfft.model import injection
from tfft.spec import Mask
from tfft.utils.errors import UserError


class MixoutKernel(keras.layers.Layer):
    """A product with a mixture of trained and pretrained kernel, for `injection.replace_matmul`.

    Args:
        get_kernel: returns the trained kernel, [inputs, outputs].
        pretrained: the pretrained kernel, [inputs, outputs].
        rate: probability of a pretrained element.
        **kwargs: of the Keras layer.
    """

    def __init__(self, get_kernel, pretrained: np.ndarray, rate: float, **kwargs):
        super().__init__(**kwargs)
        self._get_kernel, self._rate = get_kernel, rate
        # A constant, not a variable: checkpoints need not repeat the backbone's files.
        self._pretrained = ops.convert_to_tensor(pretrained)
        self.seed_generator = keras.random.SeedGenerator()
        self.built = True

    def kernel(self):
        """Return the trained kernel, [inputs, outputs]."""
        return self._get_kernel()

    def product(self, x, training):
        """Return x W for [..., inputs], with a mixed kernel in training mode."""
        kernel = self._get_kernel()
        if training:
            # A generator that Keras tracks: its state is part of the checkpoints.
            draws = keras.random.uniform(ops.shape(kernel), seed=self.seed_generator)
            pretrained = ops.cast(self._pretrained, kernel.dtype)
            mixed = ops.where(draws < self._rate, pretrained, kernel)
            # E[mixed] = rate * pretrained + (1 - rate) * kernel, so the mean of this is `kernel`.
            kernel = (mixed - self._rate * pretrained) / (1 - self._rate)
        return ops.matmul(x, ops.cast(kernel, x.dtype))


def attach(model: keras.Model, mask: Mask, rate: float) -> None:
    """Apply mixout to every trainable kernel of the backbone.

    Args:
        model: changed in place; its present kernels are the pretrained ones.
        mask: variables that are trainable in any phase.
        rate: probability of a pretrained element.

    Raises:
        UserError: no kernel of the backbone is trainable.
    """
    trainable = {entry.path for entry in mask.entries if entry.trainable}
    # A fused layer has several targets and one kernel. The head has no pretrained values.
    layers = {
        id(t.layer): t.layer
        for t in injection.linear_targets(model)
        if not t.name.startswith("head/") and f"{injection.layer_path(t.layer)}/kernel" in trainable
    }
    if not layers:
        raise UserError(
            "regularization.mixout: needs a trainable kernel in the backbone, and all are frozen"
        )
    for layer in layers.values():
        injection.replace_matmul(
            layer,
            lambda get_kernel, value: MixoutKernel(get_kernel, value, rate, name="mixout"),
        )
