"""What keeps a model from fitting its training rows too well, from the section `regularization`.

Each technique is one file; `attach` gives a compiled model those that the section asks for, at the
places that its train step has for them: the loss (`consistency`), the passes of a step
(`adversary`), the gradients (`penalties`), and the kernels (mixout).
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
    """Give the model the techniques of the section.

    Args:
        mask: what moves at any time.
        changed: paths of variables whose values are not the pretrained ones.

    Raises:
        UserError: the model has no place for one.
    """
    if config.mixout:
        mixout.attach(model, mask, config.mixout)
    if config.r_drop is not None:
        model.consistency = r_drop.RDrop(config.r_drop.alpha)
    if config.adversarial is not None:
        model.adversary = adversarial.build(model, config.adversarial)
    model.penalties = penalties.build(model, mask, changed, config)
