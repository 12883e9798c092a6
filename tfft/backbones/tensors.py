"""The tensors of safetensors files. Nothing in them can run."""

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


def weight_files(folder: Path, given: str | None = None) -> list[Path]:
    """The files with a checkpoint's weights, or the one that is given in their place.

    Raises:
        UserError: there are none, or one is no regular file of the folder.
    """
    if given is not None:
        path = expanded(given)
        if not path.exists():
            raise UserError(f"model.weights: no such file: {given}")
        if path.suffix != ".safetensors":
            raise UserError(f"model.weights: must be a .safetensors file. Received: {given}")
        return [regular_file(path, pretrained.WEIGHTS_LIMIT)]
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    # Also where it is not needed: KerasHub's converters would follow it first.
    names_ = pretrained.shards(index) if index.exists() else []
    if single.exists():
        names_ = [single.name]
    if names_:
        return [regular_file(folder / name, pretrained.WEIGHTS_LIMIT) for name in names_]
    others = sorted(p.name for p in folder.glob("*.bin"))
    hint = (
        f"; {others[0]} is a pickle, which tfft never reads: save the model anew with "
        "transformers' save_pretrained, which writes safetensors"
        if others
        else ""
    )
    raise UserError(f"{folder}: holds no model.safetensors{hint}")


class Tensors:
    """The tensors of one or several safetensors files, under names without their prefix."""

    def __init__(self, files: Sequence[Path], prefixes: Sequence[str]):
        self.where = files[0]
        self._files, self._prefixes = files, prefixes
        self._open: list[Any] = []
        self._names: dict[str, Any] = {}

    def __enter__(self) -> "Tensors":
        for path in self._files:
            with library_errors(f"{path}: not a safetensors file"):
                file = safe_open(path, framework="numpy")
            self._open.append(file)
            for name in file.keys():  # noqa: SIM118 -- it is no mapping
                self._names[self._plain(name)] = (file, name)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()
        self._names.clear()

    def _plain(self, name: str) -> str:
        prefix = next((p for p in self._prefixes if name.startswith(p)), "")
        # Files from before 2019 name a norm's parameters as TensorFlow does.
        name = name.removeprefix(prefix)
        return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
            "LayerNorm.beta", "LayerNorm.bias"
        )

    def has(self, entry: weight_map.Entry) -> bool:
        """Whether all tensors of an entry are there."""
        return all(name in self._names for name in entry.tensors)

    @property
    def size(self) -> int:
        """How many numbers all tensors hold together."""
        return sum(math.prod(self._slice(name).get_shape()) for name in self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(self._slice(name).get_shape())

    def get(self, entry: weight_map.Entry, shape: Sequence[int]) -> np.ndarray:
        """The value of an entry's variable, float32.

        Args:
            shape: of the variable.

        Raises:
            UserError: a tensor has another shape or no numbers that can be read; it is not read.
        """
        values = []
        for name, expected in zip(entry.tensors, weight_map.shapes(entry, shape), strict=True):
            if self.shape(name) != expected:
                raise UserError(
                    f"{self.where}: {name} is {list(self.shape(name))} where config.json requires "
                    f"{list(expected)}"
                )
            if (dtype := self._slice(name).get_dtype()) not in _DTYPES:
                raise UserError(
                    f"{self.where}: {name} must be one of {', '.join(_DTYPES)}. Received: {dtype}"
                )
            file, key = self._names[name]
            values.append(file.get_tensor(key).astype(np.float32))
        return weight_map.read(entry, values)

    def _slice(self, name: str) -> Any:
        """A tensor's header: nothing of it is read."""
        file, key = self._names[name]
        with library_errors(f"{self.where}: {name} cannot be read"):
            return file.get_slice(key)

    def fingerprint(self, settings: Mapping[str, Any]) -> str:
        """Of the files and of config.json."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for path in self._files:
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]
