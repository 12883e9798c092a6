"""Changes to a pretrained model before any method: blocks that begin anew, weights that shrink.

Blocks are dropped where the backbone is built (`model.surgery.drop`); the rest is here. All of it
is a function of the seed.
"""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from tfft.config import SurgeryConfig
from tfft.model import masks
from tfft.spec import Stage
from tfft.utils.errors import UserError

DEVIATION = 0.02  # of the BERT kind's own initialization (Devlin et al. 2019)


def apply(
    model: keras.Model, stages: Sequence[Stage], config: SurgeryConfig, seed: int
) -> set[str]:
    """Do what the section says; returns the paths of the variables that were changed.

    Raises:
        UserError: there are not that many blocks, or there is no pooler.
    """
    generator = np.random.default_rng([seed, 0x5A])
    changed: set[str] = set()
    fixed = masks.statistics(model)  # of the data, not learned: they stay
    backbone = {
        name: [v for v in variables if v.path not in fixed]
        for name, variables in masks.by_stage(model, stages[:-1]).items()
    }
    if config.shrink is not None:
        # Ash & Adams 2020, "On Warm-Starting Neural Network Training", section 4.1.
        for variables in backbone.values():
            for variable in variables:
                value = np.asarray(ops.convert_to_numpy(variable), np.float32)
                fresh = _fresh(variable, generator)
                variable.assign(config.shrink * value + config.perturb * fresh)
                changed.add(variable.path)
    for name in _anew(stages, config):
        # Zhang et al. 2021, "Revisiting Few-sample BERT Fine-tuning", section 4.
        for variable in backbone[name]:
            variable.assign(_fresh(variable, generator))
            changed.add(variable.path)
    return changed


def _anew(stages: Sequence[Stage], config: SurgeryConfig) -> list[str]:
    counted = masks.blocks(stages)
    if config.reinitialize > len(counted):
        raise UserError(
            f"model.surgery.reinitialize: the backbone has {len(counted)} blocks; received "
            f"{config.reinitialize}"
        )
    lowest = counted[-config.reinitialize] if config.reinitialize else counted[-1] + 1
    names = [stage.name for stage in stages[lowest:-1]] if config.reinitialize else []
    if config.pooler == "new" and "pooler" not in names:
        if all(stage.name != "pooler" for stage in stages):
            raise UserError("model.surgery.pooler: the model has no pooler")
        names.append("pooler")
    return names


def _fresh(variable: keras.Variable, generator: np.random.Generator) -> np.ndarray:
    """A first value as its authors' code draws it: kernels and tables normal, norms one, else 0."""
    shape = tuple(variable.shape)
    name = variable.path.rsplit("/", 1)[-1]
    if name in ("gamma", "scale"):
        return np.ones(shape, np.float32)
    if len(shape) < 2 or name in ("bias", "beta"):
        return np.zeros(shape, np.float32)
    # Truncated at two deviations.
    drawn = generator.standard_normal(shape)
    while (far := np.abs(drawn) > 2).any():
        drawn[far] = generator.standard_normal(int(far.sum()))
    return (DEVIATION * drawn).astype(np.float32)
