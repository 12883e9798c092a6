"""The configs that runs have written."""

from pathlib import Path
from typing import Any

from tfft.config.load import DEFAULT_TASK, Config, parse, read
from tfft.config.tasks import TASK_SECTIONS


def load_saved(path: Path) -> Config:
    """Read the config that a run has written; see `load` and `read_saved`."""
    return parse(read_saved(path), where=str(path))


def read_saved(path: Path) -> dict[str, Any]:
    """Return the content of the config that a run has written, not validated.

    Earlier versions named a column of images in it, which a model of texts did not read.
    """
    raw = read(path)
    model, task, data = (raw.get(name) for name in ("model", "task", "data"))
    if all(isinstance(part, dict) for part in (model, task, data)) and "backbone" in model:
        section = TASK_SECTIONS.get(task.get("name", DEFAULT_TASK))
        if section is not None and section.columns != ("image",):
            data["image"] = None
    return raw
