"""Gradual unfreezing: train the head first, then add stage after stage from the top.

Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text Classification", section 3.3:
one more layer each epoch, so that gradients of a random head do not disturb the lower layers.
`factor` is their discriminative fine-tuning (section 3.2; they use 1 / 2.6).
"""

from itertools import chain, zip_longest
from typing import Any

from tfft.config import Duration
from tfft.config.methods import GradualMethod
from tfft.model import masks
from tfft.spec import Method, Phase, Rule, Stage

_ORIGIN = "method gradual"


def apply(_: Any, stages: tuple[Stage, ...], config: GradualMethod) -> tuple[Phase, ...]:
    """Return one phase per unfreezing; stages stay trainable once unfrozen."""
    if config.plan is not None:
        plan = [(entry.at, entry.stages, entry.learning_rate) for entry in config.plan]
    else:
        plan = _top_down_plan(stages, config)
    phases, trainable = [], []
    for start, names, rate in plan:
        # The new rules come first, so that a plan may name a stage again with another rate.
        trainable = [Rule(name, True, rate, _ORIGIN) for name in names] + trainable
        frozen = Rule("*", trainable=False, origin=_ORIGIN)
        # Once every stage has a rule, a rule for the rest would be dead, which is an error.
        covered = len(names) > 0 and _covers_all(trainable, stages)
        phases.append(Phase((*trainable, *(() if covered else (frozen,))), start))
    return tuple(phases)


def _top_down_plan(
    stages: tuple[Stage, ...], config: GradualMethod
) -> list[tuple[Duration, list[str], float]]:
    """Return (start, stages to unfreeze, learning rate factor) of each phase.

    The head is first, then groups of blocks from the top; two backbones are unfrozen side by side.
    """
    of_towers = [_top_down_groups(tower, config.stages) for tower in masks.towers(stages)]
    groups = [list(chain(*parts)) for parts in zip_longest(*of_towers, fillvalue=())]
    # The head at the full rate; group i has the factor of its depth, counted in stages.
    plan = [(Duration(0, "steps"), [stages[-1].name], 1.0)]
    interval = config.every
    for i, group in enumerate(groups, 1):
        start = Duration(interval.value * i, interval.unit)
        plan.append((start, group, config.factor ** (i * config.stages)))
    return plan


def _top_down_groups(tower: list[Stage], size: int) -> list[list[str]]:
    """Return the stages of a backbone in groups of `size` blocks, from the top.

    Stages above the blocks (a pooler) join the first group; stages below (embeddings) are the last
    group.
    """
    blocks = masks.block_indices(tower)
    above = [stage.name for stage in tower[blocks[-1] + 1 :]]
    below = [stage.name for stage in tower[: blocks[0]]]
    names = [tower[i].name for i in reversed(blocks)]
    groups = [names[i : i + size] for i in range(0, len(names), size)]
    groups[0] = [*above, *groups[0]]
    return [*groups, below] if below else groups


def _covers_all(rules: list[Rule], stages: tuple[Stage, ...]) -> bool:
    return {stage.name for stage in stages} <= {rule.match for rule in rules}


METHOD = Method("gradual", apply)
