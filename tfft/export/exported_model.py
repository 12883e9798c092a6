"""Load an exported SavedModel and predict with it, without Keras."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfft.utils.errors import UserError
from tfft.utils.reading import library_errors, read_json

if TYPE_CHECKING:  # importing it would load Keras, which a served model does not need
    from tfft.export.signatures import Servable

_DESCRIPTION = (
    Path("assets.extra") / "tfft.json"
)  # TF Serving ignores unknown files in assets.extra


def describe(
    folder: Path,
    servable: "Servable",
    name: str | Path = _DESCRIPTION,
    source: str | None = None,
) -> None:
    """Write a JSON description beside a model: its task, labels, columns and thresholds.

    Args:
        folder: the folder of the model.
        servable: the model that was exported.
        name: path of the description, relative to `folder`.
        source: digest of the weights that were exported, which `exported_from` looks for.
    """
    thresholds = servable.thresholds
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    description = {
        "task": servable.task.name,
        "labels": list(servable.labels),
        "columns": list(servable.inputs.columns),
        "thresholds": None if thresholds is None else np.asarray(thresholds).tolist(),
        "source": source,
    }
    path.write_text(json.dumps(description, ensure_ascii=False, indent=1), encoding="utf-8")


def versions(folder: Path) -> dict[int, Path]:
    """Return the versions in a folder, number -> path, in ascending order."""
    # 18 digits always fit in int64, TF Serving's type of a version.
    paths = {int(p.name): p for p in folder.glob("*") if re.fullmatch(r"[0-9]{1,18}", p.name)}
    return dict(sorted(paths.items()))


def latest(folder: Path) -> Path | None:
    """Return the newest version in a folder, or None if it has none."""
    return next(reversed(versions(folder).values()), None)


def exported_from(folder: Path, source: str) -> Path | None:
    """Return the newest version in `folder` whose description has the digest `source`, or None."""
    for path in reversed(versions(folder).values()):
        try:
            description = json.loads((path / _DESCRIPTION).read_text(encoding="utf-8"))
            if description.get("source") == source:
                return path
        except (OSError, ValueError, AttributeError):  # not written by tfft, or deleted meanwhile
            continue
    return None


class ExportedModel:
    """A loaded export that maps raw texts or images to class probabilities.

    Args:
        folder: a version, or a folder of numbered versions, whose newest is loaded.

    Attributes:
        labels: class names, in the order of the probabilities.
        columns: names of the raw inputs: `text`, `text` and `text_pair`, or `image`.
        thresholds: threshold of each class, [C], of a multi-label task; otherwise None.

    Raises:
        UserError: the folder contains no SavedModel, or one that tfft did not export.
    """

    def __init__(self, folder: Path):
        if not (folder / "saved_model.pb").is_file():
            newest = latest(folder)
            if newest is None or not (newest / "saved_model.pb").is_file():
                raise UserError(f"{folder}: must contain a SavedModel (saved_model.pb)")
            folder = newest
        if not (folder / _DESCRIPTION).is_file():
            raise UserError(f"{folder}: was not exported by tfft (no {_DESCRIPTION})")
        description = read_json(folder / _DESCRIPTION, task=str, labels=list)
        self.labels: list[str] = description["labels"]
        default_columns = ["text", "text_pair"][: 1 + description.get("pair", False)]
        self.columns: list[str] = description.get("columns", default_columns)
        thresholds = description.get("thresholds")
        if thresholds is None and str(description["task"]).endswith("_multilabel"):
            thresholds = [0.5] * len(self.labels)
        self.thresholds = None if thresholds is None else np.array(thresholds)
        import tensorflow as tf
        import tensorflow_text  # noqa: F401 -- registers its ops

        self._tf = tf
        with library_errors(f"{folder}: not a SavedModel that TensorFlow can load"):
            self._model = tf.saved_model.load(str(folder))

    def probabilities(self, rows: Sequence[tuple[Any, ...]], batch_size: int) -> np.ndarray:
        """Return class probabilities, float32 [N, C].

        Args:
            rows: one tuple per row: a text, a pair of texts, or an image as a path or as the bytes
                of its file.
            batch_size: number of rows that the model computes at once.

        Raises:
            UserError: an image cannot be read or decoded; the message names its path or row.
        """
        requests, is_image = rows, self.columns == ["image"]
        if is_image:
            from tfft.preprocess import image

            requests = [(image.read(row[0]),) for row in rows]
        signature = self._model.signatures["serving_default"]
        batches = [np.zeros((0, len(self.labels)), np.float32)]
        for start in range(0, len(rows), batch_size):
            columns = zip(*requests[start : start + batch_size], strict=True)
            inputs = dict(zip(self.columns, columns, strict=True))
            outputs = signature(**{k: self._tf.constant(v) for k, v in inputs.items()})
            if is_image:
                _check_decoded(outputs, rows, start)
            batches.append(outputs["probabilities"].numpy())
        return np.concatenate(batches)


def _check_decoded(outputs: Mapping[str, Any], rows: Sequence[tuple[Any, ...]], start: int) -> None:
    """Raise for the first image of a batch that could not be decoded.

    Args:
        outputs: the answer of the signature, with the statuses of the images.
        rows: all rows of the call.
        start: index of the batch's first row in `rows`.

    Raises:
        UserError: an image could not be decoded.
    """
    from tfft.preprocess.graph.image_ops import OK
    from tfft.preprocess.image import STATUS

    for index, status in enumerate(outputs[STATUS].numpy() if STATUS in outputs else (), start):
        if status.decode() != OK:
            name = f"row {index + 1}" if isinstance(rows[index][0], bytes) else rows[index][0]
            raise UserError(f"{name}: {status.decode()}")
