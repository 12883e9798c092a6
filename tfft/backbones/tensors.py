"""The tensors of safetensors files. Nothing in them can run."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 -- teaches numpy bfloat16, in which some checkpoints are stored
import numpy as np
from safetensors import SafetensorError, safe_open

from tfft import pretrained
from tfft.backbones.families import names
from tfft.errors import UserError


def weight_files(folder: Path, given: str | None = None) -> list[Path]:
    """The files with a checkpoint's weights, or the one that is given in their place.

    Raises:
        UserError: there are none.
    """
    if given is not None:
        path = Path(given).expanduser()
        if not path.is_file():
            raise UserError(f"model.weights: no such file: {given}")
        if path.suffix != ".safetensors":
            raise UserError(f"model.weights: must be a .safetensors file. Received: {given}")
        return [path]
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        shards = pretrained.read_json(index).get("weight_map", {}).values()
        # A shard's name comes from the file: it must not lead out of the folder.
        return [folder / Path(str(shard)).name for shard in dict.fromkeys(shards)]
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
            try:
                file = safe_open(path, framework="numpy")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: not a safetensors file: {error}") from None
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

    def has(self, entry: names.Entry) -> bool:
        """Whether all tensors of an entry are there."""
        return all(name in self._names for name in entry.tensors)

    def get(self, entry: names.Entry) -> np.ndarray:
        """The value of an entry's variable, float32."""
        values = []
        for name in entry.tensors:
            file, key = self._names[name]
            values.append(file.get_tensor(key).astype(np.float32))
        return names.read(entry, values)

    def fingerprint(self, settings: Mapping[str, Any]) -> str:
        """Of the files and of config.json."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for path in self._files:
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]
