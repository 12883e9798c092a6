"""A greedy soup: the average of the best weights of one run, as far as that helps.

Wortsman et al. 2022, "Model soups", recipe 1: from the best weights down, each is taken into the
average if the validation figure does not get worse by it.
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
    """The best weights of a run, in a folder.

    Args:
        size: how many are kept at most.
        kept: paths of the variables that are stored; None: all.
    """

    def __init__(self, folder: Path, size: int, kept: Collection[str] | None):
        self._folder, self._size, self._kept = folder, size, kept

    def offer(self, model: keras.Model, step: int, worth: float) -> None:
        """Keep the model's weights of a step if they are among the best; higher is better."""
        for later in self._files():  # of a run that was interrupted after its last checkpoint
            if _step(later) >= step:
                later.unlink()
        entries = sorted(((_worth(p), p) for p in self._files()), key=lambda e: e[0])
        if len(entries) >= self._size:
            if worth <= entries[0][0]:
                return
            entries[0][1].unlink()
        path = self._folder / f"step_{step:08d}.safetensors"
        weight_file.save(model, path, {"worth": repr(float(worth))}, self._kept)

    def cook(self, model: keras.Model, figure: Callable[[], float], higher: bool) -> float | None:
        """Leave the greedy average in the model; its figure, None where there is no soup."""
        files = sorted(self._files(), key=lambda p: (-_worth(p), _step(p)))
        if len(files) < 2:
            return None
        sums: dict[str, np.ndarray] = {}
        taken, best = 0, None
        for path in files:
            values = _values(path)
            tried = {n: v + sums.get(n, 0.0) for n, v in values.items()}
            _assign(model, {n: v / (taken + 1) for n, v in tried.items()})
            value = figure()
            if best is None or (value >= best if higher else value <= best):
                sums, taken, best = tried, taken + 1, value
        _assign(model, {n: v / taken for n, v in sums.items()})
        console.log(f"soup: {taken} of {len(files)} weights averaged, {best:.4f} on validation")
        return best

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("step_*.safetensors"))


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _worth(path: Path) -> float:
    with safe_open(path, framework="numpy") as file:
        return float(file.metadata()["worth"])


def _values(path: Path) -> dict[str, np.ndarray]:
    with safe_open(path, framework="numpy") as file:
        names = list(file.keys())
        return {n: file.get_tensor(n).astype(np.float64) for n in names}


def _assign(model: keras.Model, values: dict[str, np.ndarray]) -> None:
    for variable in model.weights:
        if variable.path in values:
            variable.assign(ops.cast(values[variable.path], variable.dtype))
