"""tfft: fine-tune pretrained models in TensorFlow and Keras 3.

    import tfft

    run = tfft.train("config.yaml", train={"epochs": 1})
    run.metrics["test/accuracy"], run.predict(["raw text"])
    run = tfft.load("runs/config")

Importing it loads no TensorFlow: `train` and `load` do, when they are first used.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfft.run import Run
    from tfft.shared_backbone import SharedBackbone

__version__ = "0.1.0"
__all__ = ["SharedBackbone", "__version__", "load", "train"]


def __getattr__(name: str) -> Any:
    # `tfft.train` is the module with the road in it, and can be called: see its last lines.
    if name == "train":
        return importlib.import_module("tfft.train")
    if name == "SharedBackbone":
        return importlib.import_module("tfft.shared_backbone").SharedBackbone
    raise AttributeError(f"module 'tfft' has no attribute {name!r}")


def load(workdir: str | Path, backbone: str | None = None) -> Run:
    """The run in a directory, with its best weights.

    Args:
        backbone: where the backbone's files are now, as in `model.backbone`, if they are not where
            they were; a run that did not train all of it needs them.

    Raises:
        tfft.utils.errors.UserError: the directory holds no run with weights, or the backbone is another.
    """
    return importlib.import_module("tfft.run").load_run(workdir, backbone)
