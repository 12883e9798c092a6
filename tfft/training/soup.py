"""A greedy soup: the average of the best weights of one run, as far as it helps.

Wortsman et al. 2022, "Model soups", recipe 1: from the best weights down, each is added to the
average if the validation metric does not get worse.
"""

from collections.abc import Callable, Collection
from pathlib import Path

import keras
import numpy as np
from keras import ops
from safetensors import safe_open

from tfft.model import weight_file
from tfft.utils import console


class Soup:
    """The best weights of a run, stored in a folder.

    Args:
        folder: where they are stored.
        size: number of weights to keep at most.
        weight_paths: paths of the variables to store; None: all.
    """

    def __init__(self, folder: Path, size: int, weight_paths: Collection[str] | None):
        self._folder, self._size, self._weight_paths = folder, size, weight_paths

    def offer(self, model: keras.Model, step: int, score: float) -> None:
        """Store the model's weights if they are among the best.

        Args:
            model: the model at that step.
            step: number of steps done.
            score: validation metric; higher is better.
        """
        # A run that was interrupted after its last checkpoint reaches these steps again.
        for repeated in self._files():
            if _step(repeated) >= step:
                repeated.unlink()
        entries = sorted(((_score(p), p) for p in self._files()), key=lambda e: e[0])
        if len(entries) >= self._size:
            if score <= entries[0][0]:
                return
            entries[0][1].unlink()
        # Files, not arrays in memory: they survive an interruption.
        path = self._folder / f"step_{step:08d}.safetensors"
        weight_file.save(model, path, {"worth": repr(float(score))}, self._weight_paths)

    def cook(
        self, model: keras.Model, evaluate: Callable[[], float], higher_is_better: bool
    ) -> float | None:
        """Assign the greedy average to the model.

        Args:
            model: the model that gets the weights.
            evaluate: returns the validation metric of the model's current weights.
            higher_is_better: whether a higher metric is better.

        Returns:
            The metric of the average; None if fewer than two weights are stored.
        """
        # Best first; of equal ones the earlier, so that the order is defined.
        files = sorted(self._files(), key=lambda p: (-_score(p), _step(p)))
        if len(files) < 2:
            return None
        sums: dict[str, np.ndarray] = {}
        count, best = 0, None
        for path in files:
            values = _values(path)
            # Sums, not means: one division, so no rounding adds up.
            candidate = {n: v + sums.get(n, 0.0) for n, v in values.items()}
            _assign(model, {n: v / (count + 1) for n, v in candidate.items()})
            value = evaluate()
            # Equal counts as better (recipe 1): more weights in the average.
            if best is None or (value >= best if higher_is_better else value <= best):
                sums, count, best = candidate, count + 1, value
        # The last candidate may have been rejected, so the average is assigned again.
        _assign(model, {n: v / count for n, v in sums.items()})
        console.log(f"soup: {count} of {len(files)} weights averaged, {best:.4f} on validation")
        return best

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("step_*.safetensors"))


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _score(path: Path) -> float:
    with safe_open(path, framework="numpy") as file:
        return float(file.metadata()["worth"])


def _values(path: Path) -> dict[str, np.ndarray]:
    """Return the stored weights in float64, so that their sums stay exact enough to average."""
    with safe_open(path, framework="numpy") as file:
        names = list(file.keys())
        return {n: file.get_tensor(n).astype(np.float64) for n in names}


def _assign(model: keras.Model, values: dict[str, np.ndarray]) -> None:
    for variable in model.weights:
        if variable.path in values:
            variable.assign(ops.cast(values[variable.path], variable.dtype))
