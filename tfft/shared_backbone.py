"""Several trained runs on one backbone in memory: what each trained is put on and off.

A run that trained a part of its backbone saves that part alone (`best/weights.safetensors`). Here
the backbone is loaded once, and each run's head, additions and changed weights are kept beside it.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops

from tfft import backbones
from tfft import run as run_room
from tfft.config import ModelConfig
from tfft.model import injection
from tfft.run import Run
from tfft.utils.errors import UserError, nearest


class SharedBackbone:
    """Runs by name, of which one at a time is on the backbone.

        adapters = tfft.SharedBackbone("hf:sentence-transformers/all-MiniLM-L6-v2")
        adapters.add("topic", "runs/topic")
        adapters.add("tone", "runs/tone")
        adapters.predict("tone", ["a text"])

    Args:
        backbone: as `model.backbone` in the YAML.
        precision: in which all of them compute.

    Raises:
        UserError: the backbone cannot be loaded.
    """

    def __init__(self, backbone: str, precision: str = "float32"):
        self._backbone = backbones.load(ModelConfig(backbone=backbone), precision)
        weights = self._backbone.model.weights
        self._pretrained = {v.path: np.array(ops.convert_to_numpy(v)) for v in weights}
        self._runs: dict[str, Run] = {}
        self._records: dict[str, injection.Record] = {}
        self._values: dict[str, dict[str, np.ndarray]] = {}
        self._on: str | None = None

    @property
    def names(self) -> list[str]:
        """Those that were added."""
        return list(self._runs)

    def add(self, name: str, workdir: str | Path) -> None:
        """Put the run of a directory beside the others.

        Raises:
            UserError: the name is taken, the run was trained on another backbone, or it changed
                the backbone in a way that others cannot share.
        """
        if name in self._runs:
            raise UserError(f"adapters: there is one called {name!r} already")
        config, description = run_room.described(Path(workdir))
        if description["trained"] is None:
            raise UserError(f"{workdir}: trained all of its backbone: load it with tfft.load")
        run_room.same_backbone(
            self._backbone.fingerprint, description["fingerprint"], Path(workdir)
        )
        if config.method.name == "qlora" or config.model.surgery.drop:
            raise UserError(f"{workdir}: has another backbone in memory than the others")
        self._off()
        run = run_room.on_backbone(Path(workdir), config, description, self._backbone)
        trained = set(description["trained"])
        self._values[name] = {
            v.path: np.array(ops.convert_to_numpy(v))
            for v in self._backbone.model.weights
            if v.path in trained and v.path in self._pretrained
        }
        self._runs[name], self._on = run, name

    def use(self, name: str) -> Run:
        """The run, now on the backbone; it is right until another one is used.

        Raises:
            UserError: there is none of this name.
        """
        if name not in self._runs:
            raise UserError(f"adapters: none called {name!r}{nearest(name, self._runs)}")
        if self._on != name:
            self._off()
            injection.reattach(self._records.pop(name))
            self._assign(self._values[name])
            self._on = name
        return self._runs[name]

    def predict(self, name: str, rows: Iterable[str | Sequence[str]]) -> list[dict[str, Any]]:
        """As `Run.predict` of the run."""
        return self.use(name).predict(rows)

    def _off(self) -> None:
        """Leave the backbone as it was pretrained."""
        if self._on is None:
            return
        name, self._on = self._on, None
        self._records[name] = injection.detach(self._runs[name].model)
        self._assign({path: self._pretrained[path] for path in self._values[name]})

    def _assign(self, values: dict[str, np.ndarray]) -> None:
        for variable in self._backbone.model.weights:
            if variable.path in values:
                variable.assign(values[variable.path])
