"""Load an exported SavedModel and predict with it, without Keras."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from tfft.config import TASK_SECTIONS
from tfft.config.tasks import MOST_ENTITIES
from tfft.utils.errors import UserError, nearest
from tfft.utils.reading import library_errors, read_json

if TYPE_CHECKING:  # importing it would load Keras, which a served model does not need
    from tfft.export.signatures import Servable

# TF Serving ignores unknown files in assets.extra.
_DESCRIPTION = Path("assets.extra") / "tfft.json"
# Fitted values that decide how much is computed for a row -> the largest allowed ones.
_COUNTS = {"max_entities": MOST_ENTITIES, "n_best": 100, "max_answer_length": 4096}


def describe(
    folder: Path,
    servable: "Servable",
    name: str | Path = _DESCRIPTION,
    source: str | None = None,
) -> None:
    """Write a JSON description beside a model: its task, labels, columns and fitted values.

    Args:
        folder: the folder of the model.
        servable: the model that was exported.
        name: path of the description, relative to `folder`.
        source: digest of the weights that were exported, which `find_version` looks for.
    """
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    description = {
        "task": servable.task.name,
        "labels": list(servable.labels),
        "columns": list(servable.inputs.columns),
        "fitted": {name: values.tolist() for name, values in servable.fitted.items()},
        "source": source,
    }
    path.write_text(json.dumps(description, ensure_ascii=False, indent=1), encoding="utf-8")


def read_description(path: Path, **kinds: Any) -> dict[str, Any]:
    """Read the description of a model, with its `fitted` values as arrays by name.

    Args:
        kinds: types of further keys, as in `read_json`.

    Raises:
        UserError: as `read_json`, or the fitted values are not as many as the labels.
    """
    kinds |= {
        "labels": Annotated[list[str], Field(min_length=1)],
        "fitted": dict[str, list[float]],
    }
    description = read_json(path, **kinds)
    fitted = {name: np.array(v) for name, v in description["fitted"].items()}
    numbers = {name for section in TASK_SECTIONS.values() for name in section.numbers}
    for name, values in fitted.items():
        if name in numbers:
            is_count = name in _COUNTS
            if len(values) != 1 or (is_count and not 1 <= values[0] <= _COUNTS[name]):
                limits = f" from 1 to {_COUNTS[name]}" if is_count else ""
                raise UserError(f"{path}: 'fitted.{name}' must be a number{limits}")
        elif len(values) != len(description["labels"]):
            raise UserError(
                f"{path}: 'fitted.{name}' must be a number for each label. Received: "
                f"{len(values)} for {len(description['labels'])} labels"
            )
    return {**description, "fitted": fitted}


def versions(folder: Path) -> dict[int, Path]:
    """Return the versions in a folder, number -> path, in ascending order."""
    # 18 digits always fit in int64, TF Serving's type of a version.
    paths = {int(p.name): p for p in folder.glob("*") if re.fullmatch(r"[0-9]{1,18}", p.name)}
    return dict(sorted(paths.items()))


def latest(folder: Path) -> Path | None:
    """Return the newest version in a folder, or None if it has none."""
    return next(reversed(versions(folder).values()), None)


def find_version(folder: Path, source: str) -> Path | None:
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
    """A loaded export that maps raw texts or images to answers.

    Args:
        folder: a version, or a folder of numbered versions, whose newest is loaded.

    Attributes:
        labels: names of the outputs: classes, or columns of predicted numbers.
        columns: names of the raw inputs, such as `text`, `question` and `context`, or `image`.
        task: name of its task.

    Raises:
        UserError: the folder contains no SavedModel, or one that tfft did not export.
    """

    def __init__(self, folder: Path):
        # A version, or a folder of versions.
        if not (folder / "saved_model.pb").is_file():
            newest = latest(folder)
            if newest is None or not (newest / "saved_model.pb").is_file():
                raise UserError(f"{folder}: must contain a SavedModel (saved_model.pb)")
            folder = newest
        if not (folder / _DESCRIPTION).is_file():
            raise UserError(f"{folder}: was not exported by tfft (no {_DESCRIPTION})")
        description = read_description(
            folder / _DESCRIPTION, task=str, columns=list[str] | None, pair=bool | None
        )
        self.labels: list[str] = description["labels"]
        # Earlier exports have `pair` in place of `columns`.
        default_columns = ["text", "text_pair"] if description.get("pair") else ["text"]
        self.columns: list[str] = description.get("columns") or default_columns
        self.task: str = description["task"]
        if self.task not in TASK_SECTIONS:
            hint = nearest(self.task, TASK_SECTIONS)
            raise UserError(f"{folder / _DESCRIPTION}: unknown task {self.task!r}{hint}")
        size, self._outputs_of_row = TASK_SECTIONS[self.task].size, len(self.labels)
        if size is not None:
            if size not in description["fitted"]:
                raise UserError(f"{folder / _DESCRIPTION}: lacks 'fitted.{size}'")
            self._outputs_of_row = int(description["fitted"][size][0])
        # TensorFlow is imported after the cheap checks of the files.
        import tensorflow as tf
        import tensorflow_text  # noqa: F401 -- registers its ops

        self._tf = tf
        with library_errors(f"{folder}: not a SavedModel that TensorFlow can load"):
            self._model = tf.saved_model.load(str(folder))
        self._check_signature(folder)

    def _check_signature(self, folder: Path) -> None:
        """Check that the model takes the columns and returns the outputs of its task.

        Raises:
            UserError: it does not.
        """
        signature = self._model.signatures.get("serving_default")
        if signature is None:
            raise UserError(f"{folder}: has no signature serving_default")
        inputs = sorted(signature.structured_input_signature[1])  # (positional, by name)
        if inputs != sorted(self.columns):
            raise UserError(
                f"{folder}: its model takes {', '.join(inputs)}; {_DESCRIPTION} names "
                f"{', '.join(self.columns)}"
            )
        outputs = signature.structured_outputs
        size = self._outputs_of_row
        for name, spec in outputs.items():
            # Outputs of a row are one, or one for each label or entity.
            if list(spec.shape[1:]) not in ([], [None], [size]):
                raise UserError(
                    f"{folder}: its model gives {name} {list(spec.shape)}; {_DESCRIPTION} names "
                    f"{size} {'labels' if size == len(self.labels) else 'outputs'}"
                )
        for name, dtype in TASK_SECTIONS[self.task].outputs.items():
            if name not in outputs or outputs[name].dtype.name != dtype:
                raise UserError(f"{folder}: its model gives no {name!r} of type {dtype}")

    def outputs(self, rows: Sequence[tuple[Any, ...]], batch_size: int) -> dict[str, np.ndarray]:
        """Return the outputs of the task by name, [N, ...] each, such as `probabilities`.

        Args:
            rows: one tuple per row, at least one, with a value for each of `columns`; an image is
                the path or the bytes of its file.
            batch_size: number of rows that the model computes at once.

        Raises:
            UserError: an image cannot be read or decoded; the message names its path or row.
        """
        requests = rows
        if "image" in self.columns:  # the last of the columns
            from tfft.preprocess import image

            requests = [(*row[:-1], image.read(row[-1])) for row in rows]
        signature, batches = self._model.signatures["serving_default"], []
        for start in range(0, len(rows), batch_size):
            columns = zip(*requests[start : start + batch_size], strict=True)
            inputs = dict(zip(self.columns, columns, strict=True))
            outputs = signature(**{k: self._tf.constant(v) for k, v in inputs.items()})
            if "image" in self.columns:
                _check_decoded(outputs, rows, start)
            batches.append({k: outputs[k].numpy() for k in TASK_SECTIONS[self.task].outputs})
        return {k: np.concatenate([batch[k] for batch in batches]) for k in batches[0]}


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
            image = rows[index][-1]
            name = f"row {index + 1}" if isinstance(image, bytes) else image
            raise UserError(f"{name}: {status.decode()}")
