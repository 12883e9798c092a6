"""Gradual unfreezing: the head first, then stage after stage from the top.

Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text Classification", section 3.3:
one more layer each epoch, so that the lower ones are not disturbed by a head that knows nothing
yet. `factor` is their discriminative fine-tuning (section 3.2, 1 / 2.6 there).
"""

from typing import Any

from tfft.config import Duration
from tfft.config.methods import GradualMethod
from tfft.model import masks
from tfft.spec import Method, Phase, Rule, Stage

_ORIGIN = "method gradual"


def apply(_: Any, stages: tuple[Stage, ...], config: GradualMethod) -> tuple[Phase, ...]:
    """One phase for each unfreezing; what moves goes on moving."""
    if config.plan is not None:
        given = [(entry.at, entry.stages, entry.learning_rate) for entry in config.plan]
    else:
        given = _top_down(stages, config)
    phases, moving = [], []
    for start, names, rate in given:
        moving = [Rule(name, True, rate, _ORIGIN) for name in names] + moving
        frozen = Rule("*", trainable=False, origin=_ORIGIN)
        covered = len(names) > 0 and _all_named(moving, stages)
        phases.append(Phase((*moving, *(() if covered else (frozen,))), start))
    return tuple(phases)


def _top_down(
    stages: tuple[Stage, ...], config: GradualMethod
) -> list[tuple[Duration, list[str], float]]:
    """The head; then groups of blocks, the pooler with the first, the embeddings at last."""
    counted = masks.blocks(stages)
    above = [stage.name for stage in stages[counted[-1] + 1 : -1]]
    below = [stage.name for stage in stages[: counted[0]]]
    names = [stages[i].name for i in reversed(counted)]
    groups = [names[i : i + config.stages] for i in range(0, len(names), config.stages)]
    groups[0] = [*above, *groups[0]]
    if below:
        groups.append(below)
    plan = [(Duration(0, "steps"), [stages[-1].name], 1.0)]
    every = config.every
    for i, group in enumerate(groups, 1):
        start = Duration(every.value * i, every.unit)
        plan.append((start, group, config.factor ** (i * config.stages)))
    return plan


def _all_named(rules: list[Rule], stages: tuple[Stage, ...]) -> bool:
    return {stage.name for stage in stages} <= {rule.match for rule in rules}


METHOD = Method("gradual", apply)
