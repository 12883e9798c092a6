"""An exported SavedModel as a user of it sees it."""

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

_DESCRIPTION = Path("assets.extra") / "tfft.json"  # TF Serving leaves assets.extra alone


def describe(
    folder: Path,
    servable: "Servable",
    name: str | Path = _DESCRIPTION,
    source: str | None = None,
) -> None:
    """Write beside the model what its outputs mean, and the digest of what it was exported from."""
    thresholds = servable.thresholds
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    value = {
        "task": servable.task.name,
        "labels": list(servable.labels),
        "columns": list(servable.inputs.columns),
        "thresholds": None if thresholds is None else np.asarray(thresholds).tolist(),
        "source": source,
    }
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def versions(folder: Path) -> dict[int, Path]:
    """Return the exports in a folder by their numbers, ascending."""
    paths = {int(p.name): p for p in folder.glob("*") if re.fullmatch(r"[0-9]{1,18}", p.name)}
    return dict(sorted(paths.items()))


def latest(folder: Path) -> Path | None:
    """The newest export in a folder."""
    return next(reversed(versions(folder).values()), None)


def exported_from(folder: Path, source: str) -> Path | None:
    """Return the newest export in a folder that was exported from what has this digest."""
    for path in reversed(versions(folder).values()):
        try:
            description = json.loads((path / _DESCRIPTION).read_text(encoding="utf-8"))
            if description.get("source") == source:
                return path
        except (OSError, ValueError, AttributeError):  # another program's export
            continue
    return None


class ExportedModel:
    """A loaded export: raw texts or pictures in, labels and probabilities out.

    Raises:
        UserError: the folder holds no export of tfft's.
    """

    def __init__(self, folder: Path):
        if not (folder / "saved_model.pb").is_file():
            newest = latest(folder)
            if newest is None or not (newest / "saved_model.pb").is_file():
                raise UserError(f"{folder}: holds no SavedModel")
            folder = newest
        if not (folder / _DESCRIPTION).is_file():
            raise UserError(f"{folder}: was not exported by tfft (no {_DESCRIPTION})")
        description = read_json(folder / _DESCRIPTION, task=str, labels=list)
        self.labels: list[str] = description["labels"]
        older = ["text", "text_pair"][: 1 + description.get("pair", False)]
        self.columns: list[str] = description.get("columns", older)
        limits = description.get("thresholds")
        if limits is None and str(description["task"]).endswith("_multilabel"):
            limits = [0.5] * len(self.labels)
        self.thresholds = None if limits is None else np.array(limits)
        import tensorflow as tf
        import tensorflow_text  # noqa: F401 -- registers its ops

        self._tf = tf
        with library_errors(f"{folder}: not a SavedModel that TensorFlow can load"):
            self._model = tf.saved_model.load(str(folder))

    def probabilities(self, rows: Sequence[tuple[Any, ...]], batch_size: int) -> np.ndarray:
        """[N, C] for rows of one text each, or two, or of a picture: a path, or a file's bytes.

        Raises:
            UserError: a picture cannot be read or decoded; its path is named, or its number.
        """
        sent, of_pictures = rows, self.columns == ["image"]
        if of_pictures:
            from tfft.preprocess import image

            sent = [(image.read(row[0]),) for row in rows]
        serve = self._model.signatures["serving_default"]
        parts = [np.zeros((0, len(self.labels)), np.float32)]
        for start in range(0, len(rows), batch_size):
            columns = zip(*sent[start : start + batch_size], strict=True)
            named = dict(zip(self.columns, columns, strict=True))
            answer = serve(**{k: self._tf.constant(v) for k, v in named.items()})
            if of_pictures:
                _check_decoded(answer, rows, start)
            parts.append(answer["probabilities"].numpy())
        return np.concatenate(parts)


def _check_decoded(answer: Mapping[str, Any], rows: Sequence[tuple[Any, ...]], start: int) -> None:
    """Refuse the first picture of a batch that could not be decoded; its rows begin at `start`."""
    from tfft.preprocess.graph.image_ops import OK
    from tfft.preprocess.image import STATUS

    for at, status in enumerate(answer[STATUS].numpy() if STATUS in answer else (), start):
        if status.decode() != OK:
            name = f"row {at + 1}" if isinstance(rows[at][0], bytes) else rows[at][0]
            raise UserError(f"{name}: {status.decode()}")
