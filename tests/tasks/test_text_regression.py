"""Regression of texts, from a table to served numbers."""

import csv
import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfft
from tests.console import run_command
from tests.tasks.samples import regression_data
from tfft.config import parse
from tfft.config.tasks import TextRegression
from tfft.export import largest_difference
from tfft.run import load_run
from tfft.tasks import TASKS
from tfft.utils.errors import UserError

TASK = TASKS["text_regression"]
ROWS = ["the red red red red sky", "the red blue red blue sky", "the blue blue blue blue sky"]
CSV = "text,label\na red sky,{}\na blue sky,2\n" + "a sky,3\n" * 6


@pytest.mark.parametrize("kind", ["mse", "mae", "huber"])
def test_loss_of_each_row(kind):
    generator = np.random.default_rng(0)
    true, predicted = generator.normal(0, 2, (2, 6, 3)).astype(np.float32)
    error = np.abs(predicted.astype(np.float64) - true)
    delta = 0.7
    expected = {
        "mse": error**2,
        "mae": error,
        "huber": np.where(error <= delta, error**2 / 2, delta * (error - delta / 2)),
    }[kind].mean(axis=1)
    loss = TASK.loss(TextRegression(loss=kind, delta=delta))
    np.testing.assert_allclose(loss.call(true, predicted), expected, rtol=1e-5)
    assert float(loss(true, predicted)) == pytest.approx(expected.mean(), rel=1e-5)


def test_targets_are_standardised_and_answers_are_not():
    targets = np.array([[1000.0, 5.0], [3000.0, 5.0]], np.float32)
    fitted = TASK.fit_targets(TextRegression(), targets)
    split = SimpleNamespace(targets=targets)
    standardised = TASK.training_targets(TextRegression(), split, fitted)
    np.testing.assert_allclose(standardised, [[-1, 0], [1, 0]])  # a constant column has scale 1
    np.testing.assert_allclose(TASK.activate(standardised, fitted), targets)
    decoded = TASK.decode(tf.constant(standardised), ["a", "b"], fitted)["values"]
    np.testing.assert_allclose(decoded, targets)
    np.testing.assert_allclose(TASK.activation(fitted)(standardised), targets)
    assert TASK.fit_targets(TextRegression(standardize=False), targets) == {}
    assert TASK.fit_targets(TextRegression(), targets, has_new_head=False) == {}


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1e4), (2000.0, 5.0), (1e6, 100.0)])
def test_numbers_are_compared_in_the_unit_of_their_scale(mean, scale):
    """Zero-centred numbers may differ by rounding; far from zero the mean does not pass."""
    logits = np.random.default_rng(0).normal(0, 1, (500, 1)).astype(np.float32)
    fitted = {"mean": np.array([mean]), "scale": np.array([scale])}
    live = TASK.activate(logits, fitted)
    unit = TASK.unit(live, fitted)
    noisy = TASK.activate(logits * (1 + 1e-6) + np.float32(1e-6), fitted).astype(np.float32)
    assert largest_difference(noisy, live, unit) < 1e-5
    constant = np.full_like(live, mean)
    assert largest_difference(constant, live, unit) > 1
    assert np.isnan(largest_difference(noisy * np.nan, live, unit))


@pytest.fixture(scope="module")
def raw(tiny, tmp_path_factory):
    data, backbone = regression_data(tiny, tmp_path_factory.mktemp("data"))
    return {
        "data": {**data, "validation": {"fraction": 0.2}, "test": {"fraction": 0.2}},
        "model": {"backbone": backbone},
        "task": {"name": "text_regression", "dropout": 0.0},
        "optimizer": {"learning_rate": 1e-2},
        "train": {"epochs": 8, "batch_size": 8},
        "evaluate": {"bootstrap": 20},
    }


@pytest.fixture(scope="module")
def run(raw, tmp_path_factory):
    return tfft.train(raw, tmp_path_factory.mktemp("run") / "numbers")


def test_run_learns_the_numbers_in_their_unit(run):
    metrics = run.metrics
    assert metrics["test/r2"] > 0.5 > metrics["test/baseline/mean/r2"]
    assert {"test/baseline/tfidf/rmse", "test/spearman/low", "test/mae/high"} <= set(metrics)
    values = [answer["value"] for answer in run.predict(ROWS)]
    assert 80 < values[2] < values[1] < values[0] < 170
    loaded = load_run(run.workdir)
    assert loaded.fitted == run.fitted and loaded.predict(ROWS) == run.predict(ROWS)
    page = (run.workdir / "report.html").read_text()
    assert "predicted label against the true one" in page and "mean error" in page
    card = (run.workdir / "MODEL_CARD.md").read_text()
    assert "answers with a number for each of 1 columns: label" in card and "### By range" in card


def test_export_answers_in_the_unit_of_the_data(run):
    model = tf.saved_model.load(str(run.workdir / "export" / "1"))
    expected = [answer["value"] for answer in run.predict(ROWS)]
    outputs = model.signatures["serving_default"](text=tf.constant(ROWS))
    np.testing.assert_allclose(outputs["values"][:, 0], expected, rtol=1e-6)
    assert set(model.signatures) == {"serving_default", "tensors", "serialized", "regress"}
    feature = {"text": tf.train.Feature(bytes_list=tf.train.BytesList(value=[ROWS[0].encode()]))}
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    inputs = tf.constant([example.SerializeToString()])
    regressed = model.signatures["regress"](inputs=inputs)["outputs"]
    np.testing.assert_allclose(regressed, expected[:1], rtol=1e-6)
    readme = (run.workdir / "export" / "README.md").read_text()
    assert "classify" not in readme and '"signature_name": "regress", "examples"' in readme
    assert "| `regress` | `inputs`: the same tf.Examples | `outputs` float32 [B] |" in readme


@pytest.mark.parametrize("form", ["huggingface", "keras"])
def test_files_without_fitted_values_answer_in_the_unit_of_the_data(run, raw, form, tmp_path):
    path = run.export_as(form, tmp_path / form)
    expected = [answer["value"] for answer in run.predict(ROWS)]
    batch = run.inputs.batch(ROWS)
    if form == "keras":
        values = keras.models.load_model(path).predict_on_batch(batch)
        np.testing.assert_allclose(values[:, 0], expected, rtol=1e-5)
        return
    settings = json.loads((path.parent / "config.json").read_text())
    assert settings["problem_type"] == "regression" and settings["id2label"] == {"0": "label"}
    # A training from this checkpoint starts at its answers.
    config = parse(
        raw,
        changes={
            "model": {"backbone": f"hf:{path.parent}", "head": "checkpoint"},
            "train": {"epochs": 1},
            "optimizer": {"learning_rate": 1e-9},
            "export": {"enabled": False},
        },
    )
    again = tfft.train.run(config, tmp_path / "again")
    assert again.fitted == {}
    np.testing.assert_allclose([a["value"] for a in again.predict(ROWS)], expected, rtol=1e-4)


def test_several_numbers(raw, tmp_path):
    path = tmp_path / "several.csv"
    with open(raw["data"]["train"], newline="") as file:
        rows = list(csv.DictReader(file))
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "height", "depth"])
        table.writerows([[r["text"], r["label"], -float(r["label"])] for r in rows])
    changes = {
        "data": {"train": str(path), "label": ["height", "depth"]},
        "train": {"epochs": 2},
        "export": {"verify_rows": 32},
    }
    run = tfft.train(raw, tmp_path / "run", **changes)
    assert "memory: " in tfft.train.preview(run.config)
    (answer,) = run.predict(ROWS[:1])
    assert list(answer["values"]) == ["height", "depth"]
    assert answer["values"]["height"] > 50 > -50 > answer["values"]["depth"]
    model = tf.saved_model.load(str(run.workdir / "export" / "1"))
    assert "regress" not in model.signatures
    card = (run.workdir / "MODEL_CARD.md").read_text()
    assert "### By number" in card and "height" in card


MISTAKES = {
    "word": ("many", r"t\.csv:2: column 'label' must be a number below 1e18. Received: 'many'"),
    "empty": ("", r"t\.csv:2: column 'label' is empty"),
    "nan": ("nan", r"must be a number below 1e18. Received: 'nan'"),
    "infinite": ("inf", r"must be a number below 1e18. Received: 'inf'"),
    "large": ("1e30", r"must be a number below 1e18. Received: '1e30'"),
    "comma": ('"1,5"', r"a point and no separators. Received: '1,5'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_bad_numbers_are_named_or_skipped(raw, tmp_path, name):
    cell, message = MISTAKES[name]
    (tmp_path / "t.csv").write_text(CSV.format(cell))
    data = {"train": str(tmp_path / "t.csv"), "test": None}
    with pytest.raises(UserError, match=message):
        tfft.train(raw, tmp_path / "run", data=data)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**raw, "data": {**raw["data"], **data, "on_bad_row": "skip"}}))
    code, out, err = run_command("profile", f"--config={path}")
    assert code == 0 and "label: mean" in out and "data.train: 7 rows" in err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task": {"name": "text_classification"}, "data": {"label": ["a", "b"]}},
            r"data\.label: must be one column for text_classification. Received: \['a', 'b'\]",
        ),
        ({"data": {"label": []}}, r"`label` must name a column"),
        ({"data": {"label": ["a", "a"]}}, "must be different"),
        ({"data": {"label": ["a", 1]}}, "must be all names or all numbers"),
        ({"data": {"labels": ["a", "b"]}}, r"data\.labels: is for .*; task is text_regression"),
        ({"task": {"class_weights": "balanced"}}, r"task\.class_weights: unknown key"),
        ({"task": {"loss": "cross_entropy"}}, r"task\.loss: must be one of mse, mae, huber"),
        ({"train": {"metric": "accuracy"}}, r"train\.metric: must be one of r2, pearson"),
        ({"regularization": {"r_drop": {}}}, r"regularization\.r_drop: is for "),
    ],
)
def test_mistakes_in_the_config(raw, changes, message):
    task = {"name": "text_regression", **changes.get("task", {})}
    with pytest.raises(UserError, match=message):
        parse({**raw, "task": task}, changes={k: v for k, v in changes.items() if k != "task"})
