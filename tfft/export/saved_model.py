"""Publish a SavedModel that maps raw texts or encoded images to answers.

It is written to a temporary folder, loaded in a new process that has only TensorFlow and
tensorflow-text, and compared with the live model. Only then is it renamed to the next version
number, where TF Serving finds it.
"""

import base64
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfft.config import ExportConfig
from tfft.export import exported_model, serving_config, signatures, warmup_requests
from tfft.export.signatures import RESULTS, Servable, Signatures, padded, without_padded
from tfft.export.verify import plain
from tfft.export.verify_process import Verifier
from tfft.export.weight_storage import StoredWeight
from tfft.preprocess import Inputs
from tfft.tasks import predict_logits, prepare_rows
from tfft.utils import console
from tfft.utils.errors import UserError
from tfft.utils.files import temporary_folder

# Largest allowed difference of a served number from the live model's, by training precision.
BOUNDS = {"float32": 1e-5, "mixed_bfloat16": 2e-2, "mixed_float16": 5e-3}
PARITY_ROWS = 1000  # rows whose preprocessing in the graph is compared with the host's
PARITY_BATCH = 128  # rows of one comparison, which bounds the memory of decoded images
VERIFY_BATCH = 64  # examples that the live model computes at once
_VERIFIER = Verifier()


def publish(
    servable: Servable,
    sample: Sequence[tuple[Any, ...]],
    folder: Path,
    config: ExportConfig,
    precision: str,
    stored: Sequence[StoredWeight] = (),
    trained_on: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None,
    source: str | None = None,
) -> Path:
    """Write the model as the next version in `folder`, and return the path of the version.

    Args:
        servable: the model to export.
        sample: raw rows of the training data; the first `config.verify_rows` are used to compare
            the answers and as warm-up requests.
        folder: the folder of the numbered versions.
        config: the config section `export`.
        precision: the training precision, a key of `BOUNDS`.
        stored: weights that are saved in another form; the model has their rounded values.
        trained_on: maps positions in `sample` to the prepared inputs that the model was trained
            on; by default the rows are prepared again on the host.
        source: digest of the exported weights, by which `find_version` finds the version.

    Raises:
        UserError: the graph prepares a row differently from the host, the SavedModel does not run
            in a new process, or its answers differ from the live model's: numbers by more than the
            bound of the precision, other outputs at all.
    """
    inputs = servable.inputs
    requests = _RequestRows(inputs, sample)
    module = Signatures(servable, stored, config.skip_padding)
    # Preprocessing first: it is compared before the slow export.
    _check_preprocessing(servable, module.prepare, requests, trained_on)
    with temporary_folder(folder, "export") as temporary:
        module.save(temporary / "model")
        exported_model.describe(temporary / "model", servable, source=source)
        rows = [
            requests[i % len(sample)] for i in range(config.verify_rows)
        ]  # repeats a small sample
        difference, rates = _verify(servable, rows, temporary, precision)
        if config.warmup:
            warmup_requests.write(
                temporary / "model", servable, rows, serving_config.warm_up_sizes(rates)
            )
        target = _move_to_next_version(temporary / "model", folder)
    console.log(f"export: {target} (largest difference {difference:.1e} over {len(rows)} rows)")
    throughput = ", ".join(f"{size}: {rate:,.0f}" for size, rate in sorted(rates.items()))
    console.log(f"export: rows per second by batch size, on this machine: {throughput}")
    return target


def _move_to_next_version(model: Path, folder: Path) -> Path:
    """Rename a model to the next free version number, and return its path."""
    while True:
        number = max(exported_model.versions(folder), default=0) + 1
        try:
            os.rename(model, folder / str(number))
            return folder / str(number)
        except OSError:
            if number not in exported_model.versions(folder):
                raise  # otherwise a concurrent export took the number


class _RequestRows(Sequence[tuple[Any, ...]]):
    """Raw rows as a client sends them; image files are read when a row is accessed."""

    def __init__(self, inputs: Inputs, rows: Sequence[tuple[Any, ...]]):
        self._inputs, self._rows = inputs, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._inputs.request_row(row) for row in self._rows[index]]
        return self._inputs.request_row(self._rows[index])


def _check_preprocessing(
    servable: Servable,
    graph: Callable[..., dict[str, tf.Tensor]],
    sample: Sequence[tuple[Any, ...]],
    trained_on: Callable[[np.ndarray], dict[str, np.ndarray]] | None,
) -> None:
    """Check that the graph prepares rows exactly as in training: id for id, pixel for pixel.

    Raises:
        UserError: a row is prepared differently.
    """
    inputs = servable.inputs
    for start in range(0, min(len(sample), PARITY_ROWS), PARITY_BATCH):
        rows = sample[start : start + PARITY_BATCH]
        columns = list(zip(*rows, strict=True))
        host, tokens = prepare_rows(servable.task, inputs, columns)
        # Prefer the inputs that the model was trained on: preparing the rows again would not reveal
        # stored inputs that differ from today's preprocessing.
        if trained_on is not None:
            host = trained_on(np.arange(start, start + len(rows)))
        host = {**host, **{name: value for name, value in tokens.items() if name != "text"}}
        in_graph = graph(*(tf.constant(column) for column in columns))
        in_graph = {name: value.numpy() for name, value in in_graph.items()}
        if (row := _different_row(host, in_graph, len(rows))) is not None:
            is_text = all(isinstance(value, str) for value in rows[row])
            described = rows[row] if is_text else f"row {start + row + 1}"
            raise UserError(
                f"export: host and graph prepare {described!r} differently. Not published "
                "(export: {enabled: false} trains without an export)"
            )


def _different_row(
    host: dict[str, np.ndarray], prepared: dict[str, np.ndarray], rows: int
) -> int | None:
    """Return the first row that differs in two prepared batches; None if all are equal.

    Args:
        host: by name; with `row`, the row of each window, where rows are divided into windows.
        prepared: the same, prepared in the graph.
        rows: number of rows.
    """
    row_of = host.get("row", np.arange(rows))
    counts = (np.bincount(batch.get("row", row_of), minlength=rows) for batch in (host, prepared))
    if len(divided := np.flatnonzero(np.not_equal(*counts))):
        return int(divided[0])
    return next(
        (
            int(row)
            for index, row in enumerate(row_of)
            if not _examples_equal(host, prepared, index)
        ),
        None,
    )


def _examples_equal(
    host: dict[str, np.ndarray], prepared: dict[str, np.ndarray], index: int
) -> bool:
    """Return whether an example, a row or a window, is equal in both batches apart from padding."""
    if "padding_mask" not in host:
        return all(np.array_equal(host[name][index], prepared[name][index]) for name in host)
    if any(len(host[name]) != len(prepared[name]) for name in host):
        return False
    length = int(host["padding_mask"][index].sum())
    # Tokens without padding, and images; `row` has been compared.
    return length == int(prepared["padding_mask"][index].sum()) and all(
        np.array_equal(array[index][part], prepared[name][index][part])
        for name, array in host.items()
        if (part := slice(length if array.ndim == 2 else None)) and array.ndim > 1
    )


def _verify(
    servable: Servable, rows: Sequence[tuple[Any, ...]], folder: Path, precision: str
) -> tuple[float, dict[int, float]]:
    """Run the SavedModel in another process and compare its answers with the live model's.

    Every signature gets all rows at once; `serving_default` also gets batches of one and three.
    Every output is compared: numbers within the bound; strings, integers and booleans exactly,
    except in rows whose answer a change within the bound could alter.

    Returns:
        The largest difference of a number, and batch size -> rows per second.

    Raises:
        UserError: the SavedModel does not run, or an output differs.
    """
    model, inputs, task = servable.model, servable.inputs, servable.task
    bound = BOUNDS[precision]
    columns = list(zip(*rows, strict=True))
    batch, tokens = prepare_rows(task, inputs, columns)
    logits = tf.constant(predict_logits(model, batch, VERIFY_BATCH), tf.float32)
    live = task.decode(logits, servable.labels, servable.fitted)
    margins = task.margin({k: v.numpy() for k, v in live.items()}, servable.fitted, tokens)
    of_rows = task.locate(live, tokens, servable.labels, servable.fitted)
    of_inputs = without_padded(task, live, batch)
    request, response = folder / "request.npz", folder / "response.npz"
    raw = {name: list(map(_json_value, c)) for name, c in zip(inputs.columns, columns, strict=True)}
    (folder / "raw.json").write_text(json.dumps(raw), encoding="utf-8")
    np.savez(request, **padded(inputs, batch))
    failure = _VERIFIER.run(folder)
    if failure is not None or not response.is_file():
        reason = failure or "it wrote no response"
        raise UserError(f"export: the SavedModel does not run in a fresh process: {reason}")
    expected = {
        f"{name}/{output}": plain(value.numpy())
        for name in signatures.names(task, servable.labels, inputs)
        for output, value in RESULTS[name](
            of_inputs if name == "tensors" else of_rows, servable.labels
        ).items()
    }
    if task.of_tokens:
        name = f"tensors/{task.output}"
        missing = inputs.max_length - expected[name].shape[1]
        expected[name] = np.pad(expected[name], [(0, 0), (0, missing), (0, 0)])
    unit = task.unit(live[task.output].numpy(), servable.fitted)
    exact = [f"{n}/{o}" for n in ("serving_default", "serialized") for o in of_rows]
    difference = _largest_difference(
        np.load(response),
        expected,
        margins > bound,
        unit,
        # Their numbers belong to what was decided, such as the score of an entity.
        frozenset(exact) if task.of_tokens else frozenset(),
    )
    # `not <=` also refuses NaN.
    if not difference <= bound:
        raise UserError(
            f"export: the served numbers differ by {difference:.1e} from the live model's; the "
            f"bound for {precision} is {bound:.0e}. Not published"
        )
    if undecided := int((margins <= bound).sum()):
        console.log(
            f"export: {undecided} of {len(rows)} rows are within the bound of another answer; only "
            f"their {task.output} were compared"
        )
    rates = json.loads((folder / "rates.json").read_text(encoding="utf-8"))
    return difference, {int(size): rate for size, rate in rates.items()}


def largest_difference(
    actual: np.ndarray, expected: np.ndarray, unit: float | np.ndarray = 1.0
) -> float:
    """Return the largest difference of two arrays in units of their own, such as `Task.unit`.

    What a float32 cannot represent does not count: large numbers are rounded in both.
    """
    resolution = 4 * np.finfo(np.float32).eps * np.abs(expected)
    # `where` keeps NaN, which compares as a difference.
    difference = np.abs(np.asarray(actual, np.float64) - expected)
    difference = np.where(difference <= resolution, 0.0, difference)
    return float((difference / unit).max(initial=0.0))


def _largest_difference(
    answers: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    is_decided: np.ndarray,
    unit: float | np.ndarray = 1.0,
    decided_only: Collection[str] = frozenset(),
) -> float:
    """Return the largest difference of a number between answers and live outputs.

    Args:
        answers: `SIGNATURE/BATCH SIZE/OUTPUT` -> [N, ...], as the verifier writes them.
        expected: `SIGNATURE/OUTPUT` -> [N, ...], of the live model on the same rows.
        is_decided: rows whose other outputs must be equal, bool [N].
        unit: of the numbers (`Task.unit`).
        decided_only: `SIGNATURE/OUTPUT` of numbers that are compared in decided rows alone.

    Raises:
        UserError: an output is missing, of another type or shape, or different.
    """
    differences, names = [0.0], set()
    for key, answer in answers.items():
        signature, size, output = key.split("/")
        name = f"{signature}/{output}"
        names.add(name)
        value = expected.get(name)
        if value is None or (value.dtype, value.shape) != (answer.dtype, answer.shape):
            raise UserError(
                f"export: {output} of {signature} has another dtype or shape than the live "
                "model's. Not published"
            )
        if answer.dtype.kind == "f":
            rows = is_decided if name in decided_only else slice(None)
            differences.append(largest_difference(answer[rows], value[rows], unit))
            continue
        different = (answer != value).reshape(len(value), -1).any(axis=1) & is_decided
        if different.any():
            raise UserError(
                f"export: {output} of {signature} differs from the live model's in "
                f"{int(different.sum())} rows, in batches of {size}. Not published"
            )
    if missing := expected.keys() - names:
        raise UserError(f"export: the SavedModel returns no {min(missing)}. Not published")
    return float(np.max(differences))  # NaN if one is


def _json_value(value: str | bytes) -> str | dict[str, str]:
    """Return a raw value as TF Serving's REST API represents it in JSON."""
    if isinstance(value, str):
        return value
    return {"b64": base64.b64encode(value).decode()}
