"""Runs whose rows have any number of tags, from a table to served answers."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics as sk
import tensorflow as tf

import tfft
from tests.console import command
from tfft.config import parse
from tfft.export import ExportedModel
from tfft.run import load_run
from tfft.utils.errors import UserError

CHECKPOINT = Path(__file__).parent / "golden" / "vision" / "vit"
COLOURS = {"red": (220, 20, 20), "blue": (20, 20, 220), "green": (20, 200, 20)}


def write_table(folder, count, seed, separator="|"):
    """Squares of some of three colours on grey; nothing where there is none."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for at in range(count):
        pixels = generator.integers(90, 120, (16, 16, 3)).astype(np.uint8)
        tags = [name for name in COLOURS if generator.uniform() < 0.4]
        for place, name in enumerate(tags):
            pixels[:, 5 * place : 5 * place + 5] = COLOURS[name]
        (folder / f"{at}.png").write_bytes(tf.io.encode_png(pixels).numpy())
        rows.append([f"{at}.png", separator.join(tags)])
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


def test_it_learns_the_tags(run):
    assert set(run.labels) == set(COLOURS)
    figures = run.metrics
    assert figures["test/mean_average_precision"] > 0.9
    assert figures["test/micro_f1"] > figures["test/baseline/majority/micro_f1"]
    assert {"test/baseline/tiny/exact_match", "test/micro_f1/low"} <= set(figures)
    assert run.config.train.metric == "mean_average_precision"


def test_thresholds_are_of_the_validation_rows_and_kept(run):
    split = run.datasets.validation
    logits = run.logits([split.raw(at) for at in range(len(split))])
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    for tag in range(3):
        best = max(
            sk.f1_score(split.labels[:, tag], p[:, tag] >= t, zero_division=0)
            for t in np.unique(p[:, tag])
        )
        found = sk.f1_score(split.labels[:, tag], p[:, tag] >= run.thresholds[tag])
        assert found == pytest.approx(best)
    np.testing.assert_array_equal(load_run(run.workdir).thresholds, run.thresholds)


def test_served_answers_are_those_of_python(run, raw):
    folder = Path(raw["data"]["test"]).parent
    paths = [str(folder / f"{at}.png") for at in range(12)]
    answers = run.predict(paths)
    assert any(len(a["labels"]) > 1 for a in answers)
    served = ExportedModel(run.workdir / "export")
    np.testing.assert_allclose(served.thresholds, run.thresholds)
    serve = tf.saved_model.load(str(run.workdir / "export" / "1")).signatures["serving_default"]
    found = serve(image=tf.constant([Path(p).read_bytes() for p in paths]))
    for at, answer in enumerate(answers):
        assert found["label"].numpy()[at].decode() == "|".join(answer["labels"])
        chosen = [n for n, yes in zip(run.labels, found["chosen"].numpy()[at], strict=True) if yes]
        assert chosen == answer["labels"]
    lines = folder / "paths.txt"
    lines.write_text("\n".join(paths))
    code, out, err = command("predict", f"--export={run.workdir / 'export'}", f"--input={lines}")
    assert code == 0, err
    shown = [json.loads(line) for line in out.splitlines()]
    assert [s["labels"] for s in shown] == [a["labels"] for a in answers]


def test_the_memory_of_a_step_is_estimated(raw):
    assert "memory: " in tfft.train.preview(parse({**raw, "method": {"name": "head"}}))


def test_the_page_shows_tags(run):
    page = (run.workdir / "report.html").read_text()
    assert "average precision" in page and "threshold" in page
    assert "confusion" not in page
    assert "red|" in page or "|red" in page or "red|blue" in page


def test_saved_for_transformers_as_several_labels(run, tmp_path):
    run.export_huggingface(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["problem_type"] == "multi_label_classification"
    assert list(settings["label2id"]) == run.labels


def test_without_validation_rows_thresholds_stay_at_a_half(raw, tmp_path, capfd):
    config = {
        **raw,
        "data": {**raw["data"], "validation": None},
        "method": {"name": "head"},
        "train": {"epochs": 1, "batch_size": 32},
        "export": {"enabled": False},
        "evaluate": {"bootstrap": 0, "baselines": False},
    }
    run = tfft.train(config, tmp_path / "run")
    assert run.thresholds is None
    assert "no validation split to fit them on" in capfd.readouterr().err
    assert "labels" in run.predict([str(Path(raw["data"]["test"]).parent / "0.png")])[0]


def test_texts_have_tags_too(tiny, tmp_path):
    words = {"cat": "animal", "dog": "animal", "red": "colour", "blue": "colour"}
    generator = np.random.default_rng(0)
    with open(tmp_path / "rows.jsonl", "w") as file:
        for _ in range(64):
            own = list(generator.choice(list(words), generator.integers(0, 3), replace=False))
            tags = sorted({words[w] for w in own})
            file.write(json.dumps({"text": " ".join(["the", *own]), "label": tags}) + "\n")
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


def test_an_unknown_tag_has_a_place(raw, tmp_path):
    config = {**raw, "data": {**raw["data"], "labels": ["red", "blue"]}}
    with pytest.raises(UserError, match=r"rows.csv:\d+: label 'green' is not a class"):
        tfft.train(config, tmp_path / "run")
