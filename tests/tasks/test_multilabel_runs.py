"""Multi-label runs, from a table to served predictions."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics as sk
import tensorflow as tf

import tfft
from tests.console import run_command
from tfft.config import parse
from tfft.export.exported_model import read_description
from tfft.run import load_run
from tfft.utils.errors import UserError

CHECKPOINT = Path(__file__).parents[1] / "golden" / "vision" / "vit"
COLOURS = {"red": (220, 20, 20), "blue": (20, 20, 220), "green": (20, 200, 20)}


def write_table(folder, count, seed, separator="|"):
    """Write images with stripes in up to three colours on grey, labelled by their colours."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(count):
        pixels = generator.integers(90, 120, (16, 16, 3)).astype(np.uint8)
        tags = [name for name in COLOURS if generator.uniform() < 0.4]
        for position, name in enumerate(tags):
            pixels[:, 5 * position : 5 * position + 5] = COLOURS[name]
        (folder / f"{index}.png").write_bytes(tf.io.encode_png(pixels).numpy())
        rows.append([f"{index}.png", separator.join(tags)])
    with open(folder / "rows.csv", "w", newline="") as file:
        csv.writer(file).writerows([["image", "label"], *rows])
    return str(folder / "rows.csv")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    root = tmp_path_factory.mktemp("tags")
    return {
        "data": {
            "train": write_table(root / "train", 160, 0, " ; "),
            "validation": {"fraction": 0.25},
            "test": write_table(root / "test", 60, 1, " ; "),
            "label_separator": ";",
        },
        "model": {"backbone": f"hf:{CHECKPOINT}"},
        "task": {"name": "image_multilabel", "dropout": 0.0},
        "method": {"name": "full"},
        "augmentation": {"flip": "horizontal", "mixup": 0.2},
        "optimizer": {"learning_rate": 5e-3},
        "train": {"epochs": 12, "batch_size": 16},
        "evaluate": {"bootstrap": 20, "test_time_augmentation": "mirrored"},
    }


@pytest.fixture(scope="module")
def run(raw, tmp_path_factory):
    return tfft.train(raw, tmp_path_factory.mktemp("run") / "tags")


def test_run_learns_the_labels(run):
    assert set(run.labels) == set(COLOURS)
    metrics = run.metrics
    assert metrics["test/mean_average_precision"] > 0.9
    assert metrics["test/micro_f1"] > metrics["test/baseline/majority/micro_f1"]
    assert {"test/baseline/tiny/exact_match", "test/micro_f1/low"} <= set(metrics)
    assert run.config.train.metric == "mean_average_precision"


def test_thresholds_are_fitted_on_validation_rows_and_saved(run):
    split = run.datasets.validation
    logits = run.logits([split.raw_row(index) for index in range(len(split))])
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    for tag in range(3):
        best = max(
            sk.f1_score(split.targets[:, tag], p[:, tag] >= t, zero_division=0)
            for t in np.unique(p[:, tag])
        )
        actual = sk.f1_score(split.targets[:, tag], p[:, tag] >= run.fitted["thresholds"][tag])
        assert actual == pytest.approx(best)
    loaded = load_run(run.workdir).fitted
    np.testing.assert_array_equal(loaded["thresholds"], run.fitted["thresholds"])


def test_export_and_python_give_the_same_labels(run, raw):
    folder = Path(raw["data"]["test"]).parent
    paths = [str(folder / f"{index}.png") for index in range(12)]
    predictions = run.predict(paths)
    assert any(len(prediction["labels"]) > 1 for prediction in predictions)
    description = read_description(run.workdir / "export" / "1" / "assets.extra" / "tfft.json")
    np.testing.assert_allclose(description["fitted"]["thresholds"], run.fitted["thresholds"])
    serve = tf.saved_model.load(str(run.workdir / "export" / "1")).signatures["serving_default"]
    outputs = serve(image=tf.constant([Path(p).read_bytes() for p in paths]))
    for index, prediction in enumerate(predictions):
        assert outputs["label"].numpy()[index].decode() == "|".join(prediction["labels"])
        chosen = [
            n
            for n, is_chosen in zip(run.labels, outputs["chosen"].numpy()[index], strict=True)
            if is_chosen
        ]
        assert chosen == prediction["labels"]
    paths_file = folder / "paths.txt"
    paths_file.write_text("\n".join(paths))
    code, out, err = run_command(
        "predict", f"--export={run.workdir / 'export'}", f"--input={paths_file}"
    )
    assert code == 0, err
    printed = [json.loads(line) for line in out.splitlines()]
    assert [row["labels"] for row in printed] == [
        prediction["labels"] for prediction in predictions
    ]


def test_memory_of_a_step_is_estimated(raw):
    assert "memory: " in tfft.train.preview(parse({**raw, "method": {"name": "head"}}))


def test_report_shows_label_metrics(run):
    page = (run.workdir / "report.html").read_text()
    assert "average precision" in page and "threshold" in page
    assert "confusion" not in page
    assert "red|" in page or "|red" in page or "red|blue" in page


def test_huggingface_export_is_multi_label(run, tmp_path):
    run.export_huggingface(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["problem_type"] == "multi_label_classification"
    assert list(settings["label2id"]) == run.labels


def test_thresholds_stay_at_the_default_without_validation_rows(raw, tmp_path, capfd):
    config = {
        **raw,
        "data": {**raw["data"], "validation": None},
        "method": {"name": "head"},
        "train": {"epochs": 1, "batch_size": 32},
        "export": {"enabled": False},
        "evaluate": {"bootstrap": 0, "baselines": False},
    }
    run = tfft.train(config, tmp_path / "run")
    assert run.fitted == {}
    assert "no validation split to fit them on" in capfd.readouterr().err
    assert "labels" in run.predict([str(Path(raw["data"]["test"]).parent / "0.png")])[0]


def test_text_multilabel_run(tiny, tmp_path):
    words = {"cat": "animal", "dog": "animal", "red": "colour", "blue": "colour"}
    generator = np.random.default_rng(0)
    with open(tmp_path / "rows.jsonl", "w") as file:
        for _ in range(64):
            row_words = list(generator.choice(list(words), generator.integers(0, 3), replace=False))
            tags = sorted({words[word] for word in row_words})
            file.write(json.dumps({"text": " ".join(["the", *row_words]), "label": tags}) + "\n")
    config = {
        "data": {
            "train": str(tmp_path / "rows.jsonl"),
            "validation": {"fraction": 0.25},
            "max_length": 16,
        },
        "model": {"backbone": f"hf:{tiny}"},
        "task": {"name": "text_multilabel"},
        "train": {"epochs": 1, "batch_size": 16},
        "evaluate": {"bootstrap": 5},
    }
    run = tfft.train(config, tmp_path / "run")
    assert set(run.labels) == {"animal", "colour"}
    assert "validation/baseline/tfidf/micro_f1" in run.metrics
    assert set(run.predict(["the cat"])[0]) == {"labels", "probabilities"}


def test_unknown_label_error_has_a_position(raw, tmp_path):
    config = {**raw, "data": {**raw["data"], "labels": ["red", "blue"]}}
    with pytest.raises(UserError, match=r"rows.csv:\d+: label 'green' is not a class"):
        tfft.train(config, tmp_path / "run")
