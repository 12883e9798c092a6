"""tfft: fine-tune pretrained models in TensorFlow and Keras 3.

    import tfft

    run = tfft.train("config.yaml", train={"epochs": 1})
    run.metrics["test/accuracy"], run.predict(["raw text"])
    run = tfft.load("runs/config")

Importing it loads no TensorFlow; the first use of `train`, `load` or `SharedBackbone` does.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfft.utils import tensorflow_setup

if TYPE_CHECKING:
    from tfft.run import Run
    from tfft.shared_backbone import SharedBackbone

__version__ = "0.1.0"
__all__ = ["SharedBackbone", "__version__", "load", "train"]

tensorflow_setup.enable_onednn()


def __getattr__(name: str) -> Any:
    # `tfft.train` is the module of the pipeline, and callable: see its last lines.
    if name in ("train", "SharedBackbone"):
        tensorflow_setup.load_tensorflow()
    if name == "train":
        return importlib.import_module("tfft.train")
    if name == "SharedBackbone":
        return importlib.import_module("tfft.shared_backbone").SharedBackbone
    hint = "; renamed to SharedBackbone" if name == "Adapters" else ""
    raise AttributeError(f"module 'tfft' has no attribute {name!r}{hint}")


def load(workdir: str | Path, backbone: str | None = None) -> Run:
    """Load the run in a directory, with its best weights.

    Args:
        workdir: the run directory.
        backbone: where the backbone's files are now, as in `model.backbone`; default: where they
            were during the training. They are needed unless the run trained the whole backbone.

    Raises:
        tfft.utils.errors.UserError: the directory holds no run with weights, or the backbone is
            not the one that the run was trained on.
    """
    tensorflow_setup.load_tensorflow()
    return importlib.import_module("tfft.run").load_run(workdir, backbone)
