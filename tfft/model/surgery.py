"""Layer surgery before any method: reinitialized blocks, shrunk and perturbed weights.

Blocks are dropped where the backbone is built (`model.surgery.drop`). Everything else is here, and
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

STANDARD_DEVIATION = 0.02  # initializer_range of BERT (Devlin et al. 2019)


def apply(
    model: keras.Model, stages: Sequence[Stage], config: SurgeryConfig, seed: int
) -> set[str]:
    """Reinitialize, shrink and perturb variables of the backbone, as the config section asks.

    Args:
        model: changed in place.
        stages: stages of the model, bottom to top, the head last.
        config: section `model.surgery`.
        seed: determines the new values.

    Returns:
        The paths of the changed variables.

    Raises:
        UserError: the backbone has fewer blocks than `reinitialize`, or no pooler.
    """
    # Not `seed` alone, from which other draws of a run begin (bootstrap, linear probe).
    generator = np.random.default_rng([seed, 0x5A])
    changed: set[str] = set()
    fixed = masks.statistics(model)  # statistics of the data, which a random value would spoil
    backbone = {
        name: [v for v in variables if v.path not in fixed]
        for name, variables in masks.variables_by_stage(model, stages[:-1]).items()
    }
    if config.shrink is not None:
        # Ash & Adams 2020, "On Warm-Starting Neural Network Training", section 4.1.
        for variables in backbone.values():
            for variable in variables:
                value = np.asarray(ops.convert_to_numpy(variable), np.float32)
                noise = _initial_value(variable, generator)
                variable.assign(config.shrink * value + config.perturb * noise)
                changed.add(variable.path)
    # After shrinking: a reinitialized block shall have fresh values, not shrunk ones.
    for name in _reinitialized_stages(stages, config):
        # Zhang et al. 2021, "Revisiting Few-sample BERT Fine-tuning", section 4.
        for variable in backbone[name]:
            variable.assign(_initial_value(variable, generator))
            changed.add(variable.path)
    return changed


def _reinitialized_stages(stages: Sequence[Stage], config: SurgeryConfig) -> list[str]:
    """Return the names of the top blocks and of the stages between them and the head."""
    blocks, depth = masks.num_blocks(stages), masks.depths(stages)
    if config.reinitialize > blocks:
        raise UserError(
            f"model.surgery.reinitialize: the backbone has {blocks} blocks. Received: "
            f"{config.reinitialize}"
        )
    backbone = stages[:-1] if config.reinitialize else ()
    names = [stage.name for stage in backbone if depth[stage.name] <= config.reinitialize]
    if config.pooler == "new":
        poolers = [stage.name for stage in stages if stage.part == "pooler"]
        if not poolers:
            raise UserError("model.surgery.pooler: `new` needs a pooler, and the model has none")
        names += [name for name in poolers if name not in names]
    return names


def _initial_value(variable: keras.Variable, generator: np.random.Generator) -> np.ndarray:
    """Draw an initial value as BERT does: kernels and tables normal, scales 1, all others 0."""
    shape = tuple(variable.shape)
    name = variable.path.rsplit("/", 1)[-1]
    if name in ("gamma", "scale"):
        return np.ones(shape, np.float32)
    if len(shape) < 2 or name in ("bias", "beta"):
        return np.zeros(shape, np.float32)
    # A normal distribution truncated at two standard deviations.
    values = generator.standard_normal(shape)
    while (outliers := np.abs(values) > 2).any():
        values[outliers] = generator.standard_normal(int(outliers.sum()))
    return (STANDARD_DEVIATION * values).astype(np.float32)
