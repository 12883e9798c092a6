"""The phases of a training, resolved to steps and audited masks.

Most methods have one phase. Gradual unfreezing and `lp_ft` have several: each has a mask, decided
before the training, and the train step is traced again only where a phase begins.
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
    """A phase of the training, resolved.

    Attributes:
        start: its first step, from 0.
        mask: which variables are trainable in it.
        learning_rate: peak rate; None: `optimizer.learning_rate`.
        restart_schedule: whether the learning-rate schedule restarts here.
    """

    start: int
    mask: Mask
    learning_rate: float | None = None
    restart_schedule: bool = False


@dataclass(frozen=True)
class TrainingSchedule:
    """All phases of a training.

    Attributes:
        phases: in order; the first starts at step 0.
        total: steps of the training.
        mask: the union of the phases' masks.
        starts: variable path -> step from which it is trainable.
    """

    phases: tuple[SchedulePhase, ...]
    total: int
    mask: Mask
    starts: dict[str, int]

    def at(self, step: int) -> SchedulePhase:
        """Return the phase of a step."""
        # Phases are in order and the first starts at 0, so there is one.
        return [phase for phase in self.phases if phase.start <= step][-1]

    def until(self, step: int) -> int:
        """Return the step at which the phase of a step ends."""
        later_starts = (phase.start for phase in self.phases if phase.start > step)
        return min(later_starts, default=self.total)


def resolve(
    model: keras.Model,
    stages: Sequence[Stage],
    method_phases: Sequence[Phase],
    rules: Sequence[Rule],
    optimizer: OptimizerConfig,
    per_epoch: int,
    total: int,
) -> TrainingSchedule:
    """Resolve the phases of a method to steps and masks.

    Args:
        model: the assembled model, with everything that the method injects.
        stages: stages of the model, bottom to top.
        method_phases: phases of the method, in order.
        rules: rules of the section `mask`; they precede those of a phase.
        optimizer: the section `optimizer`, for its layer decay.
        per_epoch: steps of an epoch.
        total: steps of the training.

    Raises:
        UserError: a mask is not valid, or the phases are not in order.
    """
    # Read once: the masks are decided before any of them is set on the model.
    variables, statistics = masks.variables(model), masks.statistics(model)
    phases: list[SchedulePhase] = []
    for phase in method_phases:
        start = 0 if phase.start is None else phase.start.steps(per_epoch, total)
        # Durations in epochs or shares resolve to steps only here, so their order is checked here.
        if phases and start <= phases[-1].start:
            raise UserError(
                f"method: a phase at step {start} does not come after the one at step "
                f"{phases[-1].start}; the training has {total} steps, {per_epoch} an epoch"
            )
        if start >= total:
            console.log(
                f"method: the phase at step {start:,} is never reached: the training has "
                f"{total:,} steps"
            )
            break
        # The first match decides, so `mask` of the config overrules the method.
        mask = masks.decide(variables, stages, [*rules, *phase.rules], statistics)
        if optimizer.layer_decay != 1:
            mask = masks.layer_decay(mask, stages, optimizer.layer_decay)
        phases.append(SchedulePhase(start, mask, phase.learning_rate, phase.restart_schedule))
    starts: dict[str, int] = {}
    for resolved in phases:
        for entry in resolved.mask.entries:
            if entry.trainable:
                # The first phase in which it is trainable: its optimizer slots are empty until
                # then.
                starts.setdefault(entry.path, resolved.start)
    union = masks.union([resolved.mask for resolved in phases])
    return TrainingSchedule(tuple(phases), total, union, starts)


def single(mask: Mask, total: int) -> TrainingSchedule:
    """Return the schedule of one mask from the first step to the last."""
    return TrainingSchedule((SchedulePhase(0, mask),), total, mask, {})
