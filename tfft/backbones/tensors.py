"""Read tensors from safetensors files. The format holds no code, so nothing in them can run."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 -- teaches numpy bfloat16, in which some checkpoints are stored
import numpy as np
from safetensors import safe_open

from tfft.backbones.families import weight_map
from tfft.utils import pretrained
from tfft.utils.errors import UserError
from tfft.utils.reading import expanded, library_errors, regular_file

_DTYPES = ("F64", "F32", "F16", "BF16")


def weight_files(folder: Path, override: str | None = None) -> list[Path]:
    """Return the safetensors files with a checkpoint's weights.

    Args:
        folder: the checkpoint.
        override: `model.weights`, one file to read instead; None: the checkpoint's files.

    Raises:
        UserError: There are none, or one is missing, too large or not a regular file.
    """
    if override is not None:
        path = expanded(override)
        if not path.exists():
            raise UserError(f"model.weights: no such file: {override}")
        if path.suffix != ".safetensors":
            raise UserError(f"model.weights: must be a .safetensors file. Received: {override}")
        return [regular_file(path, pretrained.WEIGHTS_LIMIT)]
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    # Check the index even where a single file makes it redundant: KerasHub's converters read the
    # index first, and it may name files outside of the folder.
    names = pretrained.shards(index) if index.exists() else []
    if single.exists():
        names = [single.name]
    if names:
        return [regular_file(folder / name, pretrained.WEIGHTS_LIMIT) for name in names]
    pickles = sorted(p.name for p in folder.glob("*.bin"))
    hint = (
        f"; {pickles[0]} is a pickle, which tfft never reads: save the model again with "
        "transformers' save_pretrained, which writes safetensors"
        if pickles
        else ""
    )
    raise UserError(f"{folder}: holds no model.safetensors{hint}")


class Tensors:
    """Tensors of one or several safetensors files, by name without the checkpoint's prefix.

    Use it as a context manager: the files are open within.

    Args:
        files: the safetensors files.
        prefixes: what may precede the names (`bert.`); the first that matches is removed.
    """

    def __init__(self, files: Sequence[Path], prefixes: Sequence[str]):
        self.path = files[0]
        self._files, self._prefixes = files, prefixes
        self._handles: list[Any] = []
        self._names: dict[str, Any] = {}

    def __enter__(self) -> "Tensors":
        for path in self._files:
            with library_errors(f"{path}: not a safetensors file"):
                file = safe_open(path, framework="numpy")
            self._handles.append(file)
            for name in file.keys():  # noqa: SIM118 -- not a mapping
                self._names[self._canonical_name(name)] = (file, name)
        return self

    def __exit__(self, *_: object) -> None:
        self._handles.clear()
        self._names.clear()

    def _canonical_name(self, name: str) -> str:
        prefix = next((p for p in self._prefixes if name.startswith(p)), "")
        # Files from before 2019 name a norm's parameters as TensorFlow does.
        name = name.removeprefix(prefix)
        return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
            "LayerNorm.beta", "LayerNorm.bias"
        )

    def has(self, entry: weight_map.Entry) -> bool:
        """Return whether the files hold all tensors of an entry."""
        return all(name in self._names for name in entry.tensors)

    @property
    def size(self) -> int:
        """Number of elements in all tensors."""
        # From the headers: no value is read.
        return sum(math.prod(self._slice(name).get_shape()) for name in self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(self._slice(name).get_shape())

    def get(self, entry: weight_map.Entry, shape: Sequence[int]) -> np.ndarray:
        """Return the value of an entry's variable, float32.

        Shape and dtype are checked in the header, before any value is read into memory.

        Args:
            entry: the tensors, and how the variable is made from them.
            shape: shape of the variable.

        Raises:
            UserError: A tensor has another shape than the variable needs, or an unsupported dtype.
        """
        values = []
        for name, expected in zip(entry.tensors, weight_map.shapes(entry, shape), strict=True):
            if self.shape(name) != expected:
                raise UserError(
                    f"{self.path}: {name} is {list(self.shape(name))} where config.json requires "
                    f"{list(expected)}"
                )
            if (dtype := self._slice(name).get_dtype()) not in _DTYPES:
                raise UserError(
                    f"{self.path}: {name} must be one of {', '.join(_DTYPES)}. Received: {dtype}"
                )
            file, key = self._names[name]
            values.append(file.get_tensor(key).astype(np.float32))
        return weight_map.read(entry, values)

    def _slice(self, name: str) -> Any:
        """Return a tensor's handle, with its shape and dtype; no values are read."""
        file, key = self._names[name]
        with library_errors(f"{self.path}: {name} cannot be read"):
            return file.get_slice(key)

    def fingerprint(self, settings: Mapping[str, Any]) -> str:
        """Return a digest of the files and of config.json, 16 hexadecimal digits."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for path in self._files:
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]
