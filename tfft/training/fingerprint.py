"""Fingerprints of the data and the backbone, compared when a run resumes and between workers.

The batches of a step are a function of the seed and the rows, and the head's outputs are in the
order of the classes. A run that resumed with other rows, classes or weights would be neither the
old run nor a new one, so it is refused.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfft.config import Config
from tfft.data import Dataset, Datasets
from tfft.distribute import strategies
from tfft.spec import Backbone
from tfft.utils.errors import UserError

MAX_SHOWN = 60  # characters of a value in an error message

# Excluded from the comparison of workers: each may have its files at other paths. The content of
# the files is compared instead.
_PATHS = {
    "data": {
        **{split: {"path", "data_dir"} for split in ("train", "validation", "test")},
        "labels": True,
        "cache_dir": True,
    },
    "model": {
        "backbone": True,
        "weights": True,
        "tokenizer": True,
        **{tower: {"backbone", "weights", "tokenizer"} for tower in ("text", "image")},
    },
    "regularization": {"distillation": {"teacher"}},
}


def of(config: Config, backbone: Backbone, data: Datasets) -> dict[str, str]:
    """Return digests of everything outside the config that a run depends on, by config key."""
    teacher = config.regularization.distillation
    return {
        "model.backbone": backbone.fingerprint,
        "data.train": _rows(data.train),
        "data.validation": _rows(data.validation),
        "data.test": _rows(data.test),
        "data.labels": ", ".join(data.labels),
        "regularization.distillation.teacher": _teacher(teacher.teacher) if teacher else "none",
    }


def settings(config: Config) -> dict[str, str]:
    """Return the sections of a config that all workers must share, without paths."""
    # Section by section, so that the error can name the one that differs.
    sections = config.model_dump(mode="json", exclude=_PATHS)
    return {name: json.dumps(section) for name, section in sections.items()}


def require_unchanged(saved: Mapping[str, str], current: Mapping[str, str], workdir: Path) -> None:
    """Refuse to resume on other data, classes or weights.

    Args:
        saved: the fingerprints (`of`) in the checkpoint.
        current: the fingerprints now.
        workdir: the run directory, for the message.

    Raises:
        UserError: they differ.
    """
    changed = [
        f"{name}: {_short(saved.get(name))} at the checkpoint, {_short(value)} now"
        for name, value in current.items()
        if saved.get(name) != value
    ]
    if changed:
        raise UserError(
            f"{workdir}: cannot resume, because the data or the backbone has changed "
            f"({'; '.join(changed)}); restore it, or choose another --workdir"
        )


def require_equal_on_workers(strategy: tf.distribute.Strategy, values: Mapping[str, str]) -> None:
    """Check that all workers have equal values. Every worker must call it with the same keys.

    Raises:
        UserError: a value differs. It is raised on all workers, so that none waits for another.
    """
    workers = strategies.workers()
    if workers.count == 1:
        return
    # Each worker fills its row of zeros, so the sum gives every worker the rows of all.
    digests = np.zeros((workers.count, len(values), 2), np.int32)
    for index, value in enumerate(values.values()):
        digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest()
        # 8 bytes of SHA-256, as two int32.
        digests[workers.index, index] = np.frombuffer(digest[:8], np.int32)
    digests = strategies.sum_over_workers(strategy, digests)
    for index, name in enumerate(values):
        differing = np.flatnonzero((digests[:, index] != digests[0, index]).any(axis=1))
        if len(differing):
            raise UserError(
                f"{name}: differs between worker 0 and worker {differing[0]}; all workers must be "
                "started with the same config, data and backbone. Received here: "
                f"{_short(values[name])}"
            )


def _rows(split: Dataset | None) -> str:
    """Return the number of rows of a split, and a digest of the rows and their targets."""
    if split is None:
        return "none"
    digest = hashlib.sha256(split.prepared.content.encode())
    for array in (split.rows, split.targets):
        digest.update(array.tobytes())
    return f"{len(split):,} rows ({digest.hexdigest()[:12]})"


def _teacher(workdir: str) -> str:
    """Return a digest of the teacher's weights."""
    path = Path(workdir) / "best" / "weights.safetensors"
    if not path.is_file():
        return "none"  # loading the teacher raises the error
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _short(value: str | None) -> str:
    text = "unknown" if value is None else value
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."
