"""Regularizers of the config section `regularization`, one file each.

`attach` adds the configured ones to a compiled model. They change the train step in one of four
ways: its loss (`Model.consistency`), its forward and backward passes (`Model.adversary`), its
gradients (`Model.penalties`), or the kernels of the model (mixout).
"""

from collections.abc import Collection

from tfft.config import RegularizationConfig
from tfft.model import Model
from tfft.regularizers import adversarial, mixout, penalties, r_drop
from tfft.spec import Mask

__all__ = ["attach"]


def attach(
    model: Model,
    mask: Mask,
    changed: Collection[str],
    config: RegularizationConfig,
) -> None:
    """Attach the regularizers of the config to a model.

    Args:
        model: compiled; changed in place.
        mask: variables that are trainable in any phase.
        changed: paths of variables that do not have their pretrained values.
        config: section `regularization`.

    Raises:
        UserError: a regularizer does not apply to the model.
    """
    # Before any step, while the kernels still have their pretrained values.
    if config.mixout:
        mixout.attach(model, mask, config.mixout)
    if config.r_drop is not None:
        model.consistency = r_drop.RDrop(config.r_drop.alpha)
    if config.adversarial is not None:
        model.adversary = adversarial.build(model, config.adversarial)
    model.penalties = penalties.build(model, mask, changed, config)
