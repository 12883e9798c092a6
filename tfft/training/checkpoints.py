"""Checkpoints: the full state of a training, written atomically.

A checkpoint holds the weights, the seeds, the optimizer (its averages and loss scale included),
the running metrics, the history and the state of early stopping. The position in the data is the
step number alone, because batches are a function of seed and step (`batch_plan`). Digests of the
data and the backbone (`fingerprint`) are stored too and must be equal when the run resumes.
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
    """The progress of a training, apart from its variables.

    Attributes:
        step: number of optimizer steps done.
        history: the logged entries of metrics.jsonl.
        best: best value of `train.metric` so far; None before the first validation.
        best_step: step of that value.
        waited: number of validations since `best_step`.
        stopped: whether early stopping has ended the training.
        skipped: number of batches skipped because their loss or gradient was not finite.
        seconds: training time in seconds, over all starts.
        joules: energy that the machine's counters measured during `metered` of these seconds.
        metered: seconds during which energy was measured.
        meters: names of the counters (`energy.Meter.names`) at the last start.
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
    """The checkpoints of one run, in folders `step_N/`.

    A background thread writes each from a copy of the state while the training continues.

    Args:
        folder: where they are.
        keep: number of checkpoints to keep; older ones are deleted.
        writes: whether this process writes; of several workers only the first does.
        weight_paths: paths of the weights to store; the others equal the pretrained ones. None:
            all.
        depends_on: digests of the data and the backbone (`fingerprint.of`).
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        writes: bool = True,
        weight_paths: Collection[str] | None = None,
        depends_on: Mapping[str, str] | None = None,
    ):
        self._folder, self._keep, self._writes = folder, keep, writes
        self._weight_paths, self._depends_on = weight_paths, dict(depends_on or {})
        # One thread: checkpoints are written in order.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, model: keras.Model, state: TrainingState) -> None:
        """Copy the state and write it in the background, after any previous write.

        A step that has a checkpoint already is not saved again.

        Raises:
            UserError: the previous checkpoint could not be written.
        """
        target = self._folder / f"step_{state.step:08d}"
        if not self._writes:
            return
        self.wait()  # at most one copy of the state is in memory
        if target.exists():
            return
        # Both copies are taken before the next step changes the state.
        text = json.dumps({**asdict(state), "depends_on": self._depends_on})
        arrays = _copies(model, self._weight_paths)
        self._pending = self._pool.submit(self._write, target, arrays, text)

    def wait(self) -> None:
        """Wait until the pending checkpoint is written.

        Raises:
            UserError: it could not be written, for example because the disk is full.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            # Raises in the main thread what the writing thread could not do.
            pending.result()

    def _write(self, target: Path, arrays: dict[str, np.ndarray], text: str) -> None:
        """Write to a temporary name, rename it, then delete the oldest beyond `keep`."""
        temporary = self._folder / f".{target.name}"
        shutil.rmtree(temporary, ignore_errors=True)
        with weight_file.write_errors(temporary):
            temporary.mkdir(parents=True)
            save_file(arrays, temporary / "state.safetensors")
            (temporary / "state.json").write_text(text, encoding="utf-8")
            # The rename may reach the disk before the data does, unless the data is synced first.
            for path in temporary.iterdir():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            os.rename(temporary, target)
        # Last, so that a whole checkpoint exists at every moment.
        for _, old in list(self._newest_first())[self._keep :]:
            shutil.rmtree(old, ignore_errors=True)

    def restore(self, model: keras.Model) -> TrainingState:
        """Load the newest readable checkpoint into the model.

        Returns:
            Its state; without a checkpoint, the state of step 0.

        Raises:
            UserError: it is of another model, or the data or the backbone has changed.
        """
        # Every worker reads; the run directory must be shared by all of them.
        for _, folder in self._newest_first():
            try:
                values = weight_file.read(folder / "state.safetensors")
                saved = json.loads((folder / "state.json").read_text(encoding="utf-8"))
                depends_on = saved.pop("depends_on", self._depends_on)
                state = TrainingState(**saved)
            except (SafetensorError, OSError, ValueError, TypeError) as error:
                console.log(f"warning: {folder} cannot be read ({error}); trying the previous one")
                continue
            # Refused, not skipped: an older checkpoint depends on the same data.
            fingerprint.require_unchanged(depends_on, self._depends_on, self._folder.parent)
            _assign(model, values, folder, self._weight_paths)
            if self._writes:
                self._delete_unfinished()
            return state
        return TrainingState()

    def _delete_unfinished(self) -> None:
        """Delete the temporary folders of a killed process."""
        for path in self._folder.glob(".step_*"):
            shutil.rmtree(path, ignore_errors=True)

    def _newest_first(self) -> Iterator[tuple[int, Path]]:
        """Iterate over step and folder of all checkpoints."""
        checkpoints = []
        for path in self._folder.glob("step_*"):
            if match := _NAME.match(path.name):
                checkpoints.append((int(match[1]), path))
        return iter(sorted(checkpoints, reverse=True))


def _variables(model: keras.Model, weight_paths: Collection[str] | None) -> dict[str, Any]:
    """Return the variables of a checkpoint, by names that are equal in each process.

    Weights have paths; seeds and the optimizer's variables are numbered in order, because Keras'
    names for them hold a count that depends on what else the process has built.
    """
    paths = {v.path for v in model.weights}
    named: dict[str, Any] = {
        v.path: v for v in model.weights if weight_paths is None or v.path in weight_paths
    }
    metrics = {id(v) for v in model.metrics_variables}
    others: Sequence[Any] = [
        v for v in model.variables if v.path not in paths and id(v) not in metrics
    ]
    # State of the seed generators: the next dropout masks are those of the undisturbed run.
    named |= {f"seed:{i}": v for i, v in enumerate(others)}
    named |= {f"optimizer:{i}": v for i, v in enumerate(model.optimizer.variables)}
    if strategies.workers().count == 1:
        # Each of several workers holds a part of a metric, and reading it is a collective operation
        # of all of them, while only the first one saves. So with several workers the running mean
        # of the loss restarts when the run resumes.
        named |= {f"metric:{i}": v for i, v in enumerate(model.metrics_variables)}
    return named


def _copies(model: keras.Model, weight_paths: Collection[str] | None) -> dict[str, np.ndarray]:
    """Return copies of the variables; TensorFlow overwrites its own memory in the next step."""
    variables = _variables(model, weight_paths).items()
    # safetensors writes the buffer of an array as it is in memory, so it must be in C order.
    return {name: np.array(keras.ops.convert_to_numpy(v), order="C") for name, v in variables}


def _assign(
    model: keras.Model,
    values: Mapping[str, np.ndarray],
    folder: Path,
    weight_paths: Collection[str] | None,
) -> None:
    """Assign the values of a checkpoint to the model's variables.

    Raises:
        UserError: they do not have the same names.
    """
    variables = _variables(model, weight_paths)
    if set(variables) != set(values):
        differing = sorted(set(variables) ^ set(values))
        raise UserError(f"{folder}: is of another model; it differs at {differing[0]}")
    for name, variable in variables.items():
        variable.assign(values[name].reshape(variable.shape))
