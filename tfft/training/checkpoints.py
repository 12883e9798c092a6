"""Checkpoints: the full state of a training, written atomically.

A checkpoint holds the weights, the seeds, the optimizer (its averages and loss scale included),
the running metrics, the history and the state of early stopping. Where the training stands in its
data is the step alone: batches are a function of seed and step (`data.batches`). What the run
depends on beside its config (`identity`) is stored too, and must be the same when it resumes.
"""

import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from tfft.distribute import strategies
from tfft.model import weight_file
from tfft.training import fingerprint
from tfft.utils import console
from tfft.utils.errors import UserError

_NAME = re.compile(r"^step_(\d+)$")


@dataclass
class TrainingState:
    """Where a training stands, apart from its variables.

    Attributes:
        step: optimizer steps done.
        history: what was logged, a dict for each entry.
        best: the best value of the watched metric so far, and `best_step` its step.
        waited: validations since then.
        stopped: early stopping ended the training.
        skipped: batches that were left out because their loss was not finite.
        seconds: of training, over all starts.
        joules: that the machine's counters saw in `metered` of these seconds.
        meters: what they count (`energy.Meter.names`), at the last start.
    """

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: float | None = None
    best_step: int = 0
    waited: int = 0
    stopped: bool = False
    skipped: int = 0
    seconds: float = 0.0
    joules: float = 0.0
    metered: float = 0.0
    meters: list[str] = field(default_factory=list)


class Checkpoints:
    """The checkpoints of one run: `step_N/` folders, of which the newest `keep` stay.

    They are written by a thread of their own, from a copy: the training goes on meanwhile. Of
    several workers only the first writes.

    Args:
        kept: paths of the weights that a checkpoint holds; the others are the pretrained ones.
            None: all.
        depends_on: what the run depends on (`identity.of`).
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        writes: bool = True,
        kept: Collection[str] | None = None,
        depends_on: Mapping[str, str] | None = None,
    ):
        self._folder, self._keep, self._writes, self._kept = folder, keep, writes, kept
        self._depends_on = dict(depends_on or {})
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, model: keras.Model, state: TrainingState) -> None:
        """Copy the state and have it written; waits only for a write that is still under way.

        Raises:
            UserError: the one before could not be written.
        """
        target = self._folder / f"step_{state.step:08d}"
        if not self._writes:
            return
        self.wait()
        if target.exists():
            return
        text = json.dumps({**asdict(state), "depends_on": self._depends_on})
        self._pending = self._pool.submit(self._write, target, _arrays(model, self._kept), text)

    def wait(self) -> None:
        """Until everything is written.

        Raises:
            UserError: it could not be, as where the disk is full.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, target: Path, arrays: dict[str, np.ndarray], text: str) -> None:
        """Write to a temporary name, rename, then drop what is older than `keep`."""
        temporary = self._folder / f".{target.name}"
        shutil.rmtree(temporary, ignore_errors=True)
        with weight_file.write_errors(temporary):
            temporary.mkdir(parents=True)
            save_file(arrays, temporary / "state.safetensors")
            (temporary / "state.json").write_text(text, encoding="utf-8")
            for path in temporary.iterdir():  # on the disk before it has its name
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            os.rename(temporary, target)
        for _, old in list(self._newest_first())[self._keep :]:
            shutil.rmtree(old, ignore_errors=True)

    def restore(self, model: keras.Model) -> TrainingState:
        """Load the newest checkpoint that is whole; without one, a state of step 0.

        Raises:
            UserError: it is of another model, or what the run depends on has changed.
        """
        for _, folder in self._newest_first():
            try:
                values = weight_file.read(folder / "state.safetensors")
                saved = json.loads((folder / "state.json").read_text(encoding="utf-8"))
                depends_on = saved.pop("depends_on", self._depends_on)
                state = TrainingState(**saved)
            except (SafetensorError, OSError, ValueError, TypeError) as error:
                console.log(f"warning: {folder} is torn ({error}); trying the one before")
                continue
            fingerprint.require_unchanged(depends_on, self._depends_on, self._folder.parent)
            _assign(model, values, folder, self._kept)
            if self._writes:
                self._drop_unfinished()
            return state
        return TrainingState()

    def _drop_unfinished(self) -> None:
        """What a killed process had begun to write."""
        for path in self._folder.glob(".step_*"):
            shutil.rmtree(path, ignore_errors=True)

    def _newest_first(self) -> Iterator[tuple[int, Path]]:
        found = []
        for path in self._folder.glob("step_*"):
            if match := _NAME.match(path.name):
                found.append((int(match[1]), path))
        return iter(sorted(found, reverse=True))


def _variables(model: keras.Model, kept: Collection[str] | None) -> dict[str, Any]:
    """Every variable that is kept by a name that is the same in each process.

    Weights have paths; seeds and the optimizer's variables are numbered in order, because their
    own names carry a count that depends on what else the process has built.
    """
    paths = {v.path for v in model.weights}
    named: dict[str, Any] = {v.path: v for v in model.weights if kept is None or v.path in kept}
    metrics = {id(v) for v in model.metrics_variables}
    others: Sequence[Any] = [
        v for v in model.variables if v.path not in paths and id(v) not in metrics
    ]
    named |= {f"seed:{i}": v for i, v in enumerate(others)}
    named |= {f"optimizer:{i}": v for i, v in enumerate(model.optimizer.variables)}
    if strategies.workers().count == 1:
        # Of several workers each holds its part of a metric: reading one asks all of them, and
        # only the first saves. There the mean loss in progress begins anew after a resume.
        named |= {f"metric:{i}": v for i, v in enumerate(model.metrics_variables)}
    return named


def _arrays(model: keras.Model, kept: Collection[str] | None) -> dict[str, np.ndarray]:
    """Copies: TensorFlow's own memory changes with the next step."""
    variables = _variables(model, kept).items()
    return {name: np.array(keras.ops.convert_to_numpy(v), order="C") for name, v in variables}


def _assign(
    model: keras.Model,
    values: Mapping[str, np.ndarray],
    folder: Path,
    kept: Collection[str] | None,
) -> None:
    variables = _variables(model, kept)
    if set(variables) != set(values):
        differing = sorted(set(variables) ^ set(values))
        raise UserError(f"{folder}: is of another model; it differs at {differing[0]}")
    for name, variable in variables.items():
        variable.assign(values[name].reshape(variable.shape))
