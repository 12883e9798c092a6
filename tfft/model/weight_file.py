"""Weights of a model in a safetensors file, keyed by variable path."""

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
    variable_paths: Collection[str] | None = None,
) -> None:
    """Write weights to a safetensors file, atomically.

    Args:
        model: holds the weights.
        path: of the file; its folder is created.
        metadata: strings for the header of the file.
        variable_paths: paths of the variables to write; None writes all.

    Raises:
        UserError: the file cannot be written, for example because the disk is full.
    """
    # In the same folder: `os.replace` is atomic within one file system only.
    temporary = unused(path)
    variables = [v for v in model.weights if variable_paths is None or v.path in variable_paths]
    # safetensors writes the buffer as it lies in memory, so it must be in C order.
    values = {v.path: np.ascontiguousarray(keras.ops.convert_to_numpy(v)) for v in variables}
    with write_errors(temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(values, temporary, metadata=dict(metadata))
        os.replace(temporary, path)


@contextmanager
def write_errors(temporary: Path) -> Iterator[None]:
    """Remove a temporary file or folder if writing it fails, and raise an actionable error.

    Raises:
        UserError: writing failed within the context.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"{temporary.parent}: cannot be written: {reason}") from None


def load(model: keras.Model, path: Path, variable_paths: Collection[str] | None = None) -> None:
    """Assign the weights that `save` wrote.

    Args:
        model: changed in place.
        path: of the file.
        variable_paths: as given to `save`; other variables stay as they are.

    Raises:
        UserError: the file is missing or incomplete, or belongs to another model.
    """
    try:
        values = read(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    for variable in model.weights:
        if variable_paths is not None and variable.path not in variable_paths:
            continue
        value = values.get(variable.path)
        if value is None or value.shape != tuple(variable.shape):
            raise UserError(f"{path}: has no weights of the model's shape for {variable.path}")
        variable.assign(value)


def read(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file by name."""
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
