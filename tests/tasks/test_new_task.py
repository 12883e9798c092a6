"""A new task is a section, a class and a line in each table: one of a test passes the contract.

It counts: Poisson regression, which no task of tfft has. Left out are only the tests of what other
processes train, as they do not know the task.
"""

import csv
import gc
from typing import ClassVar, Literal, Union

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import tfft
from tests.tasks.test_contract import *  # noqa: F403 -- its tests, for this task
from tfft.config import TASK_SECTIONS, Config, TaskSection, tasks
from tfft.evaluation import baselines, regression_metrics
from tfft.evaluation.records import RowLogits
from tfft.spec import Details, Scatter, Task
from tfft.tasks import TASKS
from tfft.tasks.heads import pooled_head

pytestmark = pytest.mark.slow
# The first needs a sample of the task in tests/tasks, the last two `tfft init` and other processes.
del test_every_task_has_a_sample  # noqa: F821
del test_init_writes_a_config_of_the_task  # noqa: F821
del test_search_of_two_trials  # noqa: F821


class TextCount(TaskSection):
    """A text has a count."""

    columns = ("text",)
    targets = "numbers"
    metrics: ClassVar = {"spearman": "max", "mae": "min"}
    outputs: ClassVar = {"rate": "float32"}
    supports = frozenset()
    problem_type = None

    name: Literal["text_count"] = "text_count"
    dropout: float = tasks.DROPOUT


class Poisson(keras.losses.Loss):
    """Negative log-likelihood of a count, less what the model does not change."""

    @staticmethod
    def target_width(outputs):
        return outputs

    def call(self, y_true, y_pred):
        return ops.mean(ops.exp(y_pred) - ops.cast(y_true, "float32") * y_pred, axis=-1)


class Count(Task):
    """Counts by their logarithms; targets are numbers [N, 1]."""

    section = TextCount
    summary = "the expected count"
    output = "rate"
    pipeline = "text-classification"
    answers_with = "a count"
    constant, features = "mean", "tfidf"

    def head(self, backbone, config, labels):
        return pooled_head(backbone, "auto", config.dropout, len(labels))

    def loss(self, config):
        return Poisson(reduction="sum_over_batch_size", name="loss")

    def records(self, split, outputs, fitted):
        return RowLogits(split, outputs)

    def baselines(self, train, split, outputs):
        return baselines.constant_and_linear(self, train, split, outputs)

    def constant_logits(self, targets, classes):
        return np.log(targets.mean(axis=0))

    def linear_logits(self, features, targets, new_features, classes):
        return baselines.ridge(features, np.log1p(targets), new_features)

    def metrics(self, records, targets, fitted):
        values = regression_metrics.headline(np.exp(records), targets)
        return {name: values[name] for name in TextCount.metrics}

    def bootstrap(self, records, targets, draws, seed, fitted):
        values = regression_metrics.bootstrap(np.exp(records), targets, draws, seed)
        return {name: values[name] for name in TextCount.metrics}

    def details(self, records, split, labels, fitted):
        rates = np.exp(records)
        losses = np.abs(rates - split.targets)[:, 0]
        plot = Scatter("expected and true count", split.targets[:, 0], rates[:, 0])
        return Details((plot,), losses, losses > 0.5, lambda i: {"rate": float(rates[i, 0])})

    def activate(self, logits, fitted):
        return np.exp(logits.astype(np.float64))

    def activation(self, fitted, **arguments):
        return keras.layers.Activation("exponential", **arguments)

    def decode(self, logits, labels, fitted):
        return {"rate": tf.exp(tf.cast(logits, tf.float32))}

    def answer(self, outputs, labels):
        return {"rate": float(outputs["rate"][0])}

    def margin(self, outputs, fitted, tokens=None):
        return np.full(len(outputs["rate"]), np.inf)


@pytest.fixture(scope="module", autouse=True)
def _registered():
    """Add the task to both tables, and to the union of the sections."""
    field, table = Config.model_fields["task"], gc.get_referents(TASKS)[0]
    annotation = field.annotation
    table["text_count"], TASK_SECTIONS["text_count"] = Count(), TextCount
    field.annotation = Union[annotation, TextCount]  # noqa: UP007 -- of a value
    Config.model_rebuild(force=True)
    yield
    del table["text_count"], TASK_SECTIONS["text_count"]
    field.annotation = annotation
    Config.model_rebuild(force=True)


@pytest.fixture(scope="module")
def raw(tiny, tmp_path_factory):
    """A config of the task: the reds in a text are counted."""
    path = tmp_path_factory.mktemp("data") / "counts.csv"
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        for index in range(60):
            words = ["red" if (index >> bit) & 1 else "sky" for bit in range(4)]
            table.writerow([" ".join(words), words.count("red")])
    return {
        "data": {"train": str(path), "max_length": 12, "validation": {"fraction": 0.25}},
        "model": {"backbone": f"hf:{tiny}", "dropout": 0.0},
        "task": {"name": "text_count", "dropout": 0.0},
        "optimizer": {"learning_rate": 1e-2, "epsilon": 1e-5},
        "train": {"epochs": 2, "batch_size": 8},
        "evaluate": {"bootstrap": 20},
        "export": {"enabled": False, "verify_rows": 32},
    }


@pytest.fixture(scope="module")
def run(raw, tmp_path_factory):
    return tfft.train(raw, tmp_path_factory.mktemp("run") / "run")


def test_it_learns_to_count(run):
    assert run.metrics["validation/spearman"] > 0.5
    few, many = (answer["rate"] for answer in run.predict(["sky sky sky red", "red red red red"]))
    assert 0 < few < many
