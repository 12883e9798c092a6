"""The phases of a training, resolved to steps and audited masks.

Most methods have one phase. Gradual unfreezing and probe-then-tune have several: each has a mask,
decided before the training, and the train step is traced anew only where one begins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import keras

from tfft.config import OptimizerConfig
from tfft.model import masks
from tfft.spec import Mask, Phase, Rule, Stage
from tfft.utils import console
from tfft.utils.errors import UserError


@dataclass(frozen=True)
class SchedulePhase:
    """A phase with its first step, from 0, and what moves in it."""

    start: int
    mask: Mask
    learning_rate: float | None = None
    anew: bool = False


@dataclass(frozen=True)
class TrainingSchedule:
    """All stretches of a training.

    Attributes:
        stretches: in order; the first begins at step 0.
        total: steps of the training.
        mask: what moves in any of them.
        starts: variable path -> the step at which it begins to move.
    """

    phases: tuple[SchedulePhase, ...]
    total: int
    mask: Mask
    starts: dict[str, int]

    def at(self, step: int) -> SchedulePhase:
        """The stretch that a step belongs to."""
        return [s for s in self.phases if s.start <= step][-1]

    def until(self, step: int) -> int:
        """The step at which the next stretch begins, or the training ends."""
        return min((s.start for s in self.phases if s.start > step), default=self.total)


def resolve(
    model: keras.Model,
    stages: Sequence[Stage],
    phases: Sequence[Phase],
    own: Sequence[Rule],
    optimizer: OptimizerConfig,
    per_epoch: int,
    total: int,
) -> TrainingSchedule:
    """Decide the mask of every phase; `own` rules (the config's) come before the phase's.

    Raises:
        UserError: a mask does not hold, or the phases are not in order.
    """
    variables, fixed = masks.variables(model), masks.statistics(model)
    phases: list[SchedulePhase] = []
    for phase in phases:
        start = 0 if phase.start is None else phase.start.steps(per_epoch, total)
        if phases and start <= phases[-1].start:
            raise UserError(
                f"method: a phase at step {start} does not come after the one at step "
                f"{phases[-1].start}; the training has {total} steps, {per_epoch} an epoch"
            )
        if start >= total:
            console.log(
                f"method: what would begin at step {start:,} never does: the training has "
                f"{total:,} steps"
            )
            break
        mask = masks.decide(variables, stages, [*own, *phase.rules], fixed)
        if optimizer.layer_decay != 1:
            mask = masks.layer_decay(mask, stages, optimizer.layer_decay)
        phases.append(SchedulePhase(start, mask, phase.learning_rate, phase.anew))
    starts: dict[str, int] = {}
    for stretch in phases:
        for entry in stretch.mask.entries:
            if entry.trainable:
                starts.setdefault(entry.path, stretch.start)
    union = masks.union([stretch.mask for stretch in phases])
    return TrainingSchedule(tuple(phases), total, union, starts)


def single(mask: Mask, total: int) -> TrainingSchedule:
    """The course of one mask from the first step to the last."""
    return TrainingSchedule((SchedulePhase(0, mask),), total, mask, {})
