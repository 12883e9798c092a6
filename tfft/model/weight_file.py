"""Weights of a model in a safetensors file, by their variable paths."""

import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import keras
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tfft.utils.errors import UserError
from tfft.utils.files import unused


def save(
    model: keras.Model,
    path: Path,
    metadata: Mapping[str, str],
    kept: Collection[str] | None = None,
) -> None:
    """Write weights by their variable paths as safetensors; `kept` as in `Checkpoints`.

    Raises:
        UserError: they cannot be written, as where the disk is full.
    """
    temporary = unused(path)
    chosen = [v for v in model.weights if kept is None or v.path in kept]
    values = {v.path: np.ascontiguousarray(keras.ops.convert_to_numpy(v)) for v in chosen}
    with write_errors(temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(values, temporary, metadata=dict(metadata))
        os.replace(temporary, path)


@contextmanager
def write_errors(temporary: Path) -> Iterator[None]:
    """Remove what was begun where it cannot be written, and say why.

    Raises:
        UserError: it cannot.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"{temporary.parent}: cannot be written: {reason}") from None


def load(model: keras.Model, path: Path, kept: Collection[str] | None = None) -> None:
    """What `save` wrote, with the same `kept`.

    Raises:
        UserError: the file is missing or torn, or is of another model.
    """
    try:
        values = read(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    for variable in model.weights:
        if kept is not None and variable.path not in kept:
            continue
        value = values.get(variable.path)
        if value is None or value.shape != tuple(variable.shape):
            raise UserError(f"{path}: does not fit the model at {variable.path}")
        variable.assign(value)


def read(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file by name."""
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
