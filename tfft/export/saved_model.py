"""Writing a SavedModel: raw strings in, probabilities and labels out.

It is written to a temporary name, loaded in a fresh process that has TensorFlow and
tensorflow-text alone, compared there with the live model, and only then renamed to the next
number, where TF Serving finds it.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfft import log, metrics
from tfft.errors import UserError
from tfft.export import served
from tfft.preprocess import TextInputs
from tfft.spec import Task

# How far served probabilities may be from the live model's, by precision.
BOUNDS = {"float32": 1e-5, "mixed_bfloat16": 2e-2, "mixed_float16": 5e-3}
PARITY_ROWS = 1000  # rows whose token ids are compared
_PROBE = Path(__file__).parent / "probe.py"


def publish(
    model: keras.Model,
    inputs: TextInputs,
    task: Task,
    labels: Sequence[str],
    sample: Sequence[tuple[str, ...]],
    folder: Path,
    verify_rows: int,
    precision: str,
) -> tuple[Path, float]:
    """Write `folder/<n>/` and return it with the largest difference that was found.

    Args:
        sample: rows of the training data, each its texts; the first `verify_rows` are run.

    Raises:
        UserError: host and graph tokenize a row differently, or the served answers are further
            from the live model's than the bound of the precision.
    """
    graph = inputs.graph()
    _check_tokens(inputs, graph, sample[:PARITY_ROWS])
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".export-", dir=folder))
    try:
        _write(model, graph, task, labels, inputs.pair, temporary / "model")
        rows = [sample[i % len(sample)] for i in range(verify_rows)]  # a tiny set comes again
        difference = _verify(model, inputs, rows, temporary)
        if not difference <= BOUNDS[precision]:
            raise UserError(
                f"export: the served probabilities differ by {difference:.1e} from the live "
                f"model's; the bound for {precision} is {BOUNDS[precision]:.0e}. Not published"
            )
        target = folder / str(served.next_number(folder))
        os.rename(temporary / "model", target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log.say(f"export: {target} (largest difference {difference:.1e} over {verify_rows} rows)")
    return target, difference


class _Module(tf.Module):
    """What is saved: the tokenizer's tables, the weights, two functions."""

    def __init__(
        self, model: keras.Model, graph: Any, task: Task, labels: Sequence[str], pair: bool
    ):
        super().__init__()
        self._graph = graph
        self._weights = [variable.value for variable in model.weights]

        def answer(tokens: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return task.decode(model(tokens, training=False), labels)

        if pair:
            self.text = tf.function(
                lambda text, text_pair: answer(graph(text, text_pair)),
                input_signature=[
                    tf.TensorSpec([None], tf.string, "text"),
                    tf.TensorSpec([None], tf.string, "text_pair"),
                ],
            )
        else:
            self.text = tf.function(
                lambda text: answer(graph(text)),
                input_signature=[tf.TensorSpec([None], tf.string, "text")],
            )
        names = ("token_ids", "padding_mask", "segment_ids")
        self.tokens = tf.function(
            lambda *parts: answer(dict(zip(names, parts, strict=True))),
            input_signature=[tf.TensorSpec([None, None], tf.int32, name) for name in names],
        )


def _write(
    model: keras.Model,
    graph: Any,
    task: Task,
    labels: Sequence[str],
    pair: bool,
    folder: Path,
) -> None:
    module = _Module(model, graph, task, labels, pair)
    signatures = {"serving_default": module.text, "tokens": module.tokens}
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(
        module,
        str(folder),
        {name: function.get_concrete_function() for name, function in signatures.items()},
        options,
    )
    served.describe(folder, labels, pair, task.name)


def _check_tokens(inputs: TextInputs, graph: Any, sample: Sequence[tuple[str, ...]]) -> None:
    for start in range(0, len(sample), 256):
        rows = sample[start : start + 256]
        columns = list(zip(*rows, strict=True))
        host = inputs.batch(*columns)
        made = graph(*(tf.constant(column) for column in columns))
        for at, row in enumerate(rows):
            length = int(host["padding_mask"][at].sum())
            same = all(
                np.array_equal(host[name][at][:length], made[name][at].numpy()[:length])
                for name in host
            ) and length == int(made["padding_mask"][at].numpy().sum())
            if not same:
                raise UserError(
                    f"export: host and graph tokenize {row!r} differently; not published "
                    "(export: {enabled: false} trains without it)"
                )


def _verify(
    model: keras.Model, inputs: TextInputs, rows: Sequence[tuple[str, ...]], folder: Path
) -> float:
    """The largest difference of a served probability from the live model's.

    In batches of 1, of 3 and of all rows, from text; and all rows from token ids.
    """
    columns = list(zip(*rows, strict=True))
    tokens = inputs.batch(*columns)
    live = metrics.softmax(np.asarray(model.predict_on_batch(tokens), np.float32))
    request, response = folder / "request.npz", folder / "response.npz"
    texts = dict(zip(("text", "text_pair"), columns, strict=False))
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    np.savez(request, **tokens)
    command = [sys.executable, "-I", str(_PROBE), str(folder)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode or not response.is_file():
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(f"export: the SavedModel does not run in a fresh process: {last}")
    answers = np.load(response)
    return max(float(np.abs(answers[name] - live).max()) for name in answers.files)
