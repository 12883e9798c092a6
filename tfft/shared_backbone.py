"""Several trained runs that share one backbone in memory.

A run that trained a part of its backbone saves that part alone (`best/weights.safetensors`). Here
the backbone is loaded once, and the head, the adapters and the changed weights of each run are kept
beside it and attached when the run is used.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops

from tfft import backbones
from tfft import run as runs
from tfft.config import ModelConfig
from tfft.model import injection
from tfft.run import Run
from tfft.utils.errors import UserError, nearest


class SharedBackbone:
    """Runs by name on one backbone, one of them attached at a time.

        adapters = tfft.SharedBackbone("hf:sentence-transformers/all-MiniLM-L6-v2")
        adapters.add("topic", "runs/topic")
        adapters.add("tone", "runs/tone")
        adapters.predict("tone", ["a text"])

    Args:
        backbone: as `model.backbone` in the YAML.
        precision: as `distribute.precision`, for all runs.

    Raises:
        UserError: the backbone cannot be loaded.
    """

    def __init__(self, backbone: str, precision: str = "float32"):
        self._backbone = backbones.load(ModelConfig(backbone=backbone), precision)
        weights = self._backbone.model.weights
        # Copies: `add` and `use` overwrite the variables in place.
        self._pretrained = {v.path: np.array(ops.convert_to_numpy(v)) for v in weights}
        self._runs: dict[str, Run] = {}
        # Adapters of the runs that are not attached, and the changed backbone weights of each run.
        self._records: dict[str, injection.Record] = {}
        self._values: dict[str, dict[str, np.ndarray]] = {}
        self._attached: str | None = None

    @property
    def names(self) -> list[str]:
        """Names of the runs that were added."""
        return list(self._runs)

    def add(self, name: str, workdir: str | Path) -> None:
        """Add the run of a directory.

        Args:
            name: a name for `use` and `predict`.
            workdir: the run directory.

        Raises:
            UserError: the name exists, the run was trained on another backbone, or it changed the
                backbone in a way that other runs cannot share.
        """
        if name in self._runs:
            raise UserError(f"adapters: the name {name!r} exists already")
        config, description = runs.read_description(Path(workdir))
        if description["trained"] is None:
            raise UserError(f"{workdir}: trained its whole backbone; load it with tfft.load")
        runs.check_fingerprint(
            self._backbone.fingerprint, description["fingerprint"], Path(workdir)
        )
        if config.method.name == "qlora" or config.model.surgery.drop:
            # Both change the backbone itself: its kernels or its blocks.
            raise UserError(
                f"{workdir}: qlora and model.surgery.drop change the backbone, so it cannot be "
                "shared; load it with tfft.load"
            )
        self._detach()  # a method must be applied to the pretrained backbone
        run = runs.build_on_backbone(Path(workdir), config, description, self._backbone)
        trained = set(description["trained"])
        # Adapters and head are variables of the run; here only what it changed in the backbone.
        self._values[name] = {
            v.path: np.array(ops.convert_to_numpy(v))
            for v in self._backbone.model.weights
            if v.path in trained and v.path in self._pretrained
        }
        self._runs[name], self._attached = run, name

    def use(self, name: str) -> Run:
        """Attach a run to the backbone and return it; it is valid until another one is used.

        Raises:
            UserError: no run has this name.
        """
        if name not in self._runs:
            raise UserError(f"adapters: no run is named {name!r}{nearest(name, self._runs)}")
        if self._attached != name:
            self._detach()
            # The layers are shared, so the adapters of one run only may be attached.
            injection.reattach(self._records.pop(name))
            self._assign(self._values[name])
            self._attached = name
        return self._runs[name]

    def predict(self, name: str, rows: Iterable[str | Sequence[str]]) -> list[dict[str, Any]]:
        """Attach a run and predict the labels of raw rows; see `Run.predict`."""
        return self.use(name).predict(rows)

    def _detach(self) -> None:
        """Detach the attached run, so that the backbone has its pretrained weights."""
        if self._attached is None:
            return
        name, self._attached = self._attached, None
        self._records[name] = injection.detach(self._runs[name].model)
        # Only what the run had changed.
        self._assign({path: self._pretrained[path] for path in self._values[name]})

    def _assign(self, values: dict[str, np.ndarray]) -> None:
        for variable in self._backbone.model.weights:
            if variable.path in values:
                variable.assign(values[variable.path])
