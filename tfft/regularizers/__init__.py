"""Regularizers of the config section `regularization`, one file each.

`attach` adds the configured ones to a compiled model. They change the train step in one of four
ways: its loss, its forward and backward passes, its gradients (`consistency`, `adversary` and
`penalties` of `model.StepOptions`), or the kernels of the model (mixout).
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
        model.configure(consistency=r_drop.RDrop(config.r_drop.alpha))
    if config.adversarial is not None:
        model.configure(adversary=adversarial.build(model, config.adversarial))
    model.configure(penalties=penalties.build(model, mask, changed, config))
