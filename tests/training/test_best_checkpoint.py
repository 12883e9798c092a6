"""The best checkpoint: direction of the metric, min_delta, patience, no validation split."""

import contextlib
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

import tfft
from tfft.config.sections import EarlyStopping
from tfft.config.tasks import TASK_SECTIONS, TextClassification
from tfft.training import best_checkpoint
from tfft.training.best_checkpoint import Validate, finish, gain
from tfft.training.checkpoints import TrainingState


class FakeRun:
    """A run that records the steps whose weights it saves."""

    def __init__(self, state):
        self.state = state
        self.config = SimpleNamespace(train=SimpleNamespace(soup=0), task=TextClassification())
        self.model = SimpleNamespace(stop_training=False, distribute_strategy=None)
        self.saved_steps, self.saved_whole = [], []

    def save_weights(self):
        self.saved_steps.append(self.state.step)

    def save(self):
        self.saved_whole.append(self.state.step)


@pytest.fixture(autouse=True)
def no_averages(monkeypatch):
    monkeypatch.setattr(
        best_checkpoint.optimizers, "averaged", lambda model: contextlib.nullcontext()
    )


def validate(monkeypatch, values, metric="accuracy", early_stopping=None, every=1, total=None):
    """Train one step for each value, which is what a validation at that step gives.

    Returns:
        The run, its state, and the entries of its history.
    """
    state, entries = TrainingState(), []
    run = FakeRun(state)
    pipeline = SimpleNamespace(
        train=SimpleNamespace(metric=metric, early_stopping=early_stopping),
        plan=SimpleNamespace(total=total or len(values)),
    )
    monkeypatch.setattr(
        best_checkpoint, "validation_metrics", lambda *_: {metric: values[state.step - 1]}
    )
    history = SimpleNamespace(add=lambda entry: entries.append((state.step, entry)))
    callback = Validate(run, pipeline, state, history, every)
    callback.set_model(run.model)
    for step in range(1, len(values) + 1):
        state.step = step
        callback.on_train_batch_end(step - 1)
        if run.model.stop_training:
            break
    return run, state, entries


def test_gain_is_positive_for_a_better_value():
    assert gain("max", 0.5, None) == gain("min", 0.5, None) == math.inf
    assert gain("max", 0.75, 0.5) == 0.25
    assert gain("min", 0.75, 0.5) == -0.25
    lower_is_better = {
        metric
        for section in TASK_SECTIONS.values()
        for metric, direction in section.metrics.items()
        if direction == "min"
    }
    assert lower_is_better == {"log_loss", "calibration_error", "rmse", "mae"}


@pytest.mark.parametrize(
    ("metric", "saved_steps", "best"),
    [
        ("accuracy", [1, 3], 0.8),
        ("macro_f1", [1, 3], 0.8),
        ("log_loss", [1, 2, 4], 0.3),
        ("calibration_error", [1, 2, 4], 0.3),
    ],
)
def test_the_best_weights_are_saved(monkeypatch, metric, saved_steps, best):
    run, state, entries = validate(monkeypatch, [0.6, 0.5, 0.8, 0.3, 0.7], metric)
    assert run.saved_steps == saved_steps
    assert (state.best, state.best_step) == (best, saved_steps[-1])
    assert entries[2] == (3, {f"validation/{metric}": 0.8})


def test_an_equal_value_does_not_replace_the_best(monkeypatch):
    run, state, _ = validate(monkeypatch, [0.5, 0.5, 0.5])
    assert run.saved_steps == [1] and state.waited == 2


@pytest.mark.parametrize(
    ("metric", "values"),
    [("accuracy", [0.5, 0.55, 0.61, 0.65]), ("log_loss", [0.5, 0.45, 0.39, 0.35])],
)
def test_a_change_within_min_delta_is_no_improvement(monkeypatch, metric, values):
    """Improvements count from the best value, not from the last."""
    early_stopping = EarlyStopping(patience=9, min_delta=0.1)
    run, state, _ = validate(monkeypatch, values, metric, early_stopping)
    assert run.saved_steps == [1, 3]
    assert (state.best, state.waited) == (values[2], 1)


def test_patience_stops_the_training(monkeypatch, capfd):
    early_stopping = EarlyStopping(patience=2)
    values = [0.5, 0.4, 0.6, 0.5, 0.4, 0.9]
    run, state, entries = validate(monkeypatch, values, early_stopping=early_stopping)
    assert state.stopped and run.model.stop_training
    assert (state.step, state.best_step, state.best) == (5, 3, 0.6)
    assert len(entries) == 5
    assert "stopping early: no better accuracy for 2 validations" in capfd.readouterr().err


def test_without_early_stopping_the_training_continues(monkeypatch):
    run, state, _ = validate(monkeypatch, [0.5, 0.4, 0.3, 0.2])
    assert not state.stopped and not run.model.stop_training and state.waited == 3


def test_a_validation_is_due_at_intervals_and_at_the_end(monkeypatch):
    _, _, entries = validate(monkeypatch, [0.1] * 7, every=3)
    assert [step for step, _ in entries] == [3, 6, 7]


def test_finish_without_validation_saves_the_last_weights():
    state = TrainingState(step=12)
    run = FakeRun(state)
    finish(run, SimpleNamespace(), state)
    assert run.saved_whole == [12]


def test_finish_with_validation_keeps_the_best_weights(monkeypatch):
    run, state, _ = validate(monkeypatch, [0.5, 0.9, 0.4])
    finish(run, SimpleNamespace(), state)
    assert run.saved_whole == [] and run.saved_steps == [1, 2]


def test_early_stopping_keeps_the_best_weights(config, tmp_path):
    changes = {
        "train": {
            "epochs": 30,
            "early_stopping": {"patience": 2},
            "metric": "log_loss",
            "validate_every": "3 steps",
        },
        "optimizer": {"learning_rate": 0.5, "schedule": "constant"},
    }
    result = tfft.train(config, workdir=tmp_path / "run", **changes)
    entries = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    losses = {x["step"]: x["validation/log_loss"] for x in entries if "validation/log_loss" in x}
    best = min(losses, key=losses.get)
    assert result.metrics["best_step"] == best
    assert result.metrics["steps"] == max(losses) == best + 6 < 180
    assert result.metrics["validation/log_loss"] == pytest.approx(losses[best], rel=1e-5)


def test_without_validation_the_last_weights_are_saved(config, tmp_path):
    result = tfft.train(config, workdir=tmp_path / "run", data={"validation": None})
    assert "test/accuracy" in result.metrics and "validation/accuracy" not in result.metrics
    loaded = tfft.load(tmp_path / "run")
    for a, b in zip(result.model.weights, loaded.model.weights, strict=True):
        np.testing.assert_array_equal(a.value, b.value, err_msg=a.path)
