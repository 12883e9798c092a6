"""Writing a SavedModel: raw texts or encoded pictures in, probabilities and labels out.

It is written to a temporary name, loaded in a fresh process that has TensorFlow and
tensorflow-text alone, compared there with the live model, and only then renamed to the next
number, where TF Serving finds it.
"""

import base64
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfft.config import ExportConfig
from tfft.export import exported_model, serving_config, warmup
from tfft.export.compact import StoredWeight
from tfft.export.signatures import Servable, Signatures, padded
from tfft.export.verify_process import Verifier
from tfft.preprocess import Inputs
from tfft.utils import console
from tfft.utils.errors import UserError
from tfft.utils.files import temporary_folder

# How far served probabilities may be from the live model's, by precision.
BOUNDS = {"float32": 1e-5, "mixed_bfloat16": 2e-2, "mixed_float16": 5e-3}
PARITY_ROWS = 1000  # rows whose preparation is compared
CHECKED = 128  # of them at once
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
    """Write `folder/<n>/` and return it.

    Args:
        sample: raw rows of the training data; the first `config.verify_rows` are run, and are what
            warm-up requests hold.
        stored: weights that are saved in another form, whose values the model has now.
        trained_on: positions in the sample -> what the model was given for these rows in training;
            default: they are prepared again, on the host.
        source: a digest of what is exported, by which `exported_from` finds the version.

    Raises:
        UserError: the graph prepares a row differently from the host, or the served answers are
            further from the live model's than the bound of the precision.
    """
    inputs = servable.inputs
    sent = _Sent(inputs, sample)
    signatures = Signatures(servable, stored, config.skip_padding)
    _check_prepared(inputs, signatures.prepare, sent, trained_on)
    with temporary_folder(folder, "export") as temporary:
        signatures.save(temporary / "model")
        exported_model.describe(temporary / "model", servable, source=source)
        rows = [sent[i % len(sample)] for i in range(config.verify_rows)]  # a tiny set comes again
        difference, rates = _verify(servable, rows, temporary)
        if not difference <= BOUNDS[precision]:
            raise UserError(
                f"export: the served probabilities differ by {difference:.1e} from the live "
                f"model's; the bound for {precision} is {BOUNDS[precision]:.0e}. Not published"
            )
        if config.warmup:
            warmup.write(temporary / "model", inputs, rows, serving_config.warm_up_sizes(rates))
        target = _rename(temporary / "model", folder)
    console.log(f"export: {target} (largest difference {difference:.1e} over {len(rows)} rows)")
    fastest = ", ".join(f"{size}: {rate:,.0f}" for size, rate in sorted(rates.items()))
    console.log(f"export: rows a second by batch size, on this machine: {fastest}")
    return target


def _rename(model: Path, folder: Path) -> Path:
    """Give a model the next free number."""
    while True:
        number = max(exported_model.versions(folder), default=0) + 1
        try:
            os.rename(model, folder / str(number))
            return folder / str(number)
        except OSError:
            if number not in exported_model.versions(folder):
                raise  # else another export was first


class _Sent(Sequence[tuple[Any, ...]]):
    """Raw rows as a client sends them; a picture's file is read when it is asked for."""

    def __init__(self, inputs: Inputs, rows: Sequence[tuple[Any, ...]]):
        self._inputs, self._rows = inputs, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self._inputs.request_row(row) for row in self._rows[at]]
        return self._inputs.request_row(self._rows[at])


def _check_prepared(
    inputs: Inputs,
    graph: Callable[..., dict[str, tf.Tensor]],
    sample: Sequence[tuple[Any, ...]],
    trained_on: Callable[[np.ndarray], dict[str, np.ndarray]] | None,
) -> None:
    """What was trained on and what is served must be the same: id for id, pixel for pixel.

    Raises:
        UserError: they differ in a row.
    """
    for start in range(0, min(len(sample), PARITY_ROWS), CHECKED):
        rows = sample[start : start + CHECKED]
        columns = list(zip(*rows, strict=True))
        if trained_on is not None:
            host = trained_on(np.arange(start, start + len(rows)))
        else:
            host = inputs.batch(*columns)
        made = graph(*(tf.constant(column) for column in columns))
        made = {name: value.numpy() for name, value in made.items()}
        for at, row in enumerate(rows):
            if not _same(host, made, at):
                shown = row if isinstance(row[0], str) else f"row {start + at + 1}"
                raise UserError(
                    f"export: host and graph prepare {shown!r} differently; not published "
                    "(export: {enabled: false} trains without it)"
                )


def _same(host: dict[str, np.ndarray], made: dict[str, np.ndarray], at: int) -> bool:
    """Whether a row is the same in both, apart from padding."""
    if "padding_mask" not in host:
        return all(np.array_equal(host[name][at], made[name][at]) for name in host)
    length = int(host["padding_mask"][at].sum())
    return length == int(made["padding_mask"][at].sum()) and all(
        np.array_equal(host[name][at][:length], made[name][at][:length]) for name in host
    )


def _verify(
    servable: Servable, rows: Sequence[tuple[Any, ...]], folder: Path
) -> tuple[float, dict[int, float]]:
    """The largest difference of a served probability from the live model's; rows a second.

    Every signature with all rows, the raw one in batches of 1 and of 3 too.
    """
    model, inputs, task = servable.model, servable.inputs, servable.task
    columns = list(zip(*rows, strict=True))
    prepared = inputs.batch(*columns)
    live = task.probabilities(np.asarray(model.predict_on_batch(prepared), np.float32))
    request, response = folder / "request.npz", folder / "response.npz"
    raw = {name: list(map(_plain, c)) for name, c in zip(inputs.columns, columns, strict=True)}
    (folder / "raw.json").write_text(json.dumps(raw), encoding="utf-8")
    np.savez(request, **padded(inputs, prepared))
    problem = _VERIFIER.run(folder)
    if problem is not None or not response.is_file():
        reason = problem or "it gave no answers"
        raise UserError(f"export: the SavedModel does not run in a fresh process: {reason}")
    answers = np.load(response)
    difference = max(float(np.abs(answers[name] - live).max()) for name in answers.files)
    rates = json.loads((folder / "rates.json").read_text(encoding="utf-8"))
    return difference, {int(size): rate for size, rate in rates.items()}


def _plain(value: str | bytes) -> str | dict[str, str]:
    """A raw value in JSON, as TF Serving's REST interface takes it."""
    if isinstance(value, str):
        return value
    return {"b64": base64.b64encode(value).decode()}
