"""The pipeline: it learns, repeats bit-identically, resumes exactly and refuses mistakes."""

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

import tfft
from tests.conftest import whole_config, write_csv
from tests.report.drawings import drawings
from tfft import train
from tfft.config import parse
from tfft.training import setup
from tfft.training.callbacks import Interrupt
from tfft.training.checkpoints import Checkpoints
from tfft.utils.errors import Interrupted, UserError


def run(config, workdir, **changes):
    return tfft.train(config, workdir=workdir, **changes)


def weights(result):
    return {v.path: np.array(v.value) for v in result.model.weights}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tiny):
    """A run of `config`, which tests only read."""
    folder = tmp_path_factory.mktemp("plain")
    return run(whole_config(tiny, folder), folder / "run")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny):
    """A finished run with evaluation, report and export, and its config."""
    folder = tmp_path_factory.mktemp("finished")
    config = {
        "data": {
            "train": str(write_csv(folder / "train.csv", 400)),
            "test": str(write_csv(folder / "test.csv", 60, seed=1)),
            "max_length": 16,
        },
        "model": {"backbone": f"hf:{tiny}"},
        "optimizer": {"learning_rate": 5e-3},
        "train": {"epochs": 6, "batch_size": 16},
        "evaluate": {"bootstrap": 100},
    }
    return run(config, folder / "run"), config


def test_training_learns_the_task(finished):
    result, _ = finished
    assert result.metrics["test/accuracy"] > 0.95
    assert result.metrics["test/baseline/majority/accuracy"] < 0.6
    low, high = (result.metrics[f"test/accuracy/{end}"] for end in ("low", "high"))
    assert low <= result.metrics["test/accuracy"] <= high


def test_the_run_directory_holds_config_metrics_and_facts(finished):
    result, config = finished
    names = {path.name for path in result.workdir.iterdir()}
    expected = "config.yaml run.json mask.txt metrics.jsonl metrics.json checkpoints best export"
    assert set(expected.split()) | {"report.html", "MODEL_CARD.md"} <= names
    assert not [name for name in names if name.startswith(".")]
    assert parse(yaml.safe_load((result.workdir / "config.yaml").read_text())) == parse(config)
    lines = [json.loads(line) for line in (result.workdir / "metrics.jsonl").open()]
    assert any("train/loss" in line for line in lines)
    assert sum("validation/accuracy" in line for line in lines) == 6
    facts = json.loads((result.workdir / "run.json").read_text())
    assert facts["versions"]["tfft"] == tfft.__version__
    assert len(list((result.workdir / "checkpoints").iterdir())) == 2


def test_report_is_one_page_with_everything(finished):
    result, _ = finished
    page = (result.workdir / "report.html").read_text(encoding="utf-8")
    for part in (
        "Most wrong",
        "confusion",
        "reliability",
        "learning rate",
        "tokens per row",
        "parameters are trainable",
        "tfft.load(",
        "tensorflow/serving",
        "max_length",
    ):
        assert part in page or (part == "Most wrong" and result.metrics["test/accuracy"] == 1.0), (
            part
        )
    plots = drawings(page)  # parsing checks that they are well-formed
    assert len(plots) == page.count("<img") >= 6
    for plot in plots:
        for element in plot.iter():
            assert not re.search(r"\bnan\b", "".join(element.attrib.values()))
    assert "<script" not in page and "<link" not in page
    assert page.count("src=") == page.count('src="data:')


def test_the_model_card_holds_the_metrics_of_the_run(finished):
    result, config = finished
    text = (result.workdir / "MODEL_CARD.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["pipeline_tag"] == "text-classification" and "base_model" not in card  # a folder
    (model,) = card["model-index"]
    for entry in model["results"]:
        split = entry["dataset"]["split"]
        for metric in entry["metrics"]:
            value = result.metrics[f"{split}/{metric['name']}"]
            assert metric["value"] == pytest.approx(value, abs=5e-5)
    assert {entry["dataset"]["split"] for entry in model["results"]} == {"validation", "test"}
    for name in ("accuracy", "accuracy/low", "accuracy/high", "baseline/majority/accuracy"):
        assert f"{result.metrics[f'test/{name}']:.4f}" in body
    assert f"{result.metrics['test/calibration_error']:.3f}" in body
    assert all(f"| {label} |" in body for label in result.labels)
    facts = json.loads((result.workdir / "run.json").read_text())
    assert (
        facts["backbone"] in body
        and f"| train | train.csv | {facts['data']['rows']['train']:,} |" in body
    )
    assert re.search(r"; \d+ seconds of training", body) and re.search(
        r"- Energy: (not measured|\d)", body
    )
    steps = int(result.metrics["steps"])
    assert f"{steps:,} steps of {parse(config).train.batch_size} rows" in body


def test_a_loaded_run_predicts_the_same(finished):
    result, _ = finished
    loaded = tfft.load(result.workdir)
    assert_equal(weights(result), weights(loaded))
    rows = ["the sky is blue", "a red apple", "grass is green the the the the"]
    np.testing.assert_allclose(loaded.logits(rows), result.logits(rows), atol=1e-5)
    assert [row["label"] for row in loaded.predict(rows)] == ["blue", "red", "green"]
    assert sum(loaded.predict(rows)[0]["probabilities"].values()) == pytest.approx(1.0)
    evaluation = loaded.evaluate("test", bootstrap=0, baselines=False)
    assert evaluation.metrics["accuracy"] == result.metrics["test/accuracy"]


def test_the_model_is_a_plain_keras_model(finished):
    result, _ = finished
    model = result.model
    batch = result.inputs.batch(["a red sky", "the blue apple"])
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(batch, np.array([0, 1]), verbose=0)
    assert set(history.history) >= {"loss", "accuracy"}
    assert model.predict(batch, verbose=0).shape == (2, 3)
    assert len(model.evaluate(batch, np.array([0, 1]), verbose=0)) == 2
    result.load_weights()


def test_a_finished_run_is_not_trained_again(finished):
    result, config = finished
    modified = (result.workdir / "metrics.json").stat().st_mtime_ns
    loaded = run(config, result.workdir)
    assert_equal(weights(result), weights(loaded))
    assert (result.workdir / "metrics.json").stat().st_mtime_ns == modified


def test_another_config_is_refused(finished):
    result, config = finished
    names = sorted(p.name for p in result.workdir.iterdir())
    with pytest.raises(UserError, match=r"another config \(train.epochs: 6 there, 7 here\)"):
        run(config, result.workdir, train={"epochs": 7})
    assert sorted(p.name for p in result.workdir.iterdir()) == names


def test_a_corrected_config_may_use_the_folder_of_a_failed_run(config, tmp_path):
    with pytest.raises(UserError, match=r"must be at most 1, .* Received: 9"):
        run(config, tmp_path / "run", method={"name": "top", "stages": 9})
    assert list((tmp_path / "run").iterdir()) == []
    with pytest.raises(UserError, match=r"train.cache_features: the lowest stage is trainable"):
        run(config, tmp_path / "run", train={"cache_features": True})
    assert (tmp_path / "run" / "config.yaml").is_file()
    assert run(config, tmp_path / "run").metrics["steps"] == 12


def test_the_same_config_gives_the_same_weights(plain, config, tmp_path):
    repeated = run(config, tmp_path / "repeated")
    assert_equal(weights(plain), weights(repeated))
    other_seed = run(config, tmp_path / "other_seed", train={"seed": 1})
    assert any((weights(other_seed)[p] != w).any() for p, w in weights(plain).items())


class _StopAt:
    """A wrapper of a callback method that acts like a signal during a step."""

    def __init__(self, step):
        self.step = step

    def __call__(self, original):
        def on_train_batch_end(callback, batch, logs=None):
            if callback._state.step == self.step:
                callback.stop_requested = True
            return original(callback, batch, logs)

        return on_train_batch_end


def test_resume_is_bit_identical(plain, config, tmp_path, monkeypatch):
    """Interrupt a run within the first epoch, at its end, and in the second epoch."""
    for step in (3, 6, 8):
        with monkeypatch.context() as patch:
            stop = _StopAt(step)(Interrupt.on_train_batch_end)
            patch.setattr(Interrupt, "on_train_batch_end", stop)
            with pytest.raises(Interrupted, match=f"interrupted at step {step} of 12.*resumes it"):
                run(config, tmp_path / "resumed")
        assert not (tmp_path / "resumed" / "metrics.json").exists()
    resumed = run(config, tmp_path / "resumed")
    assert_equal(weights(plain), weights(resumed))
    assert plain.metrics == resumed.metrics

    def logged_entries(result):
        entries = (json.loads(line) for line in (result.workdir / "metrics.jsonl").open())
        return [
            {k: v for k, v in entry.items() if k not in ("time", "train/loss")} for entry in entries
        ]

    assert logged_entries(plain) == logged_entries(resumed)


def test_a_broken_checkpoint_is_skipped(plain, config, tmp_path, monkeypatch, capfd):
    """The interval of checkpoints changes no weights, so `plain` may have another one."""
    changes = {"train": {"checkpoint": {"every": "2 steps", "keep": 3}}}
    with monkeypatch.context() as patch:
        stop = _StopAt(8)(Interrupt.on_train_batch_end)
        patch.setattr(Interrupt, "on_train_batch_end", stop)
        with pytest.raises(Interrupted):
            run(config, tmp_path / "resumed", **changes)
    newest = tmp_path / "resumed" / "checkpoints" / "step_00000008" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    resumed = run(config, tmp_path / "resumed", **changes)
    assert "cannot be read" in capfd.readouterr().err
    assert_equal(weights(plain), weights(resumed))


def test_a_signal_saves_and_exits_with_3(config, tmp_path):
    path = tmp_path / "c.yaml"
    config["train"]["epochs"] = 400
    config["data"]["validation"] = None
    path.write_text(yaml.safe_dump(config))
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "tfft.cli.train", f"--config={path}", f"--workdir={workdir}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    timer = threading.Timer(200, process.kill)
    timer.start()
    try:
        while process.poll() is None and not list(workdir.glob("checkpoints/step_*")):
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
    finally:
        timer.cancel()
    assert process.returncode == 3, err
    assert "Traceback" not in err
    last_line = err.strip().split("\n")[-1]
    assert "is saved" in last_line and f"--workdir={workdir}" in last_line


def test_head_and_top_leave_the_rest_bit_equal(config, tiny_two_blocks, tmp_path):
    config["model"]["backbone"] = f"hf:{tiny_two_blocks}"
    config["data"]["validation"] = config["data"]["test"] = None
    changes = {"optimizer": {"learning_rate": 1e-30}, "method": {"name": "head"}}
    start = weights(run(config, tmp_path / "zero", **changes))
    for method, trainable in (
        ({"name": "head"}, ("head/",)),
        ({"name": "top", "stages": 1}, ("block_1/", "pooler/", "head/")),
    ):
        result = run(config, tmp_path / method["name"], method=method)
        for path, value in weights(result).items():
            is_unchanged = np.array_equal(value, start[path])
            assert is_unchanged != path.startswith(trainable), path


def test_mask_rules_precede_those_of_the_method(config, tmp_path):
    rules = [{"match": "block_0", "trainable": False}, {"match": "head", "learning_rate": 10}]
    result = run(config, tmp_path / "run", mask=rules)
    table = (tmp_path / "run" / "mask.txt").read_text()
    assert "frozen" in next(line for line in table.split("\n") if line.startswith("block_0"))
    assert next(line for line in table.split("\n") if line.startswith("head")).endswith(" 10")
    assert not any(v.trainable for v in result.model.weights if v.path.startswith("block_0/"))


@pytest.mark.parametrize("precision", ["mixed_bfloat16"])
def test_mixed_precision(config, tmp_path, precision):
    changes = {"distribute": {"precision": precision}, "export": {"enabled": True}}
    result = run(config, tmp_path / "run", **changes)
    assert {v.dtype for v in result.model.weights} == {"float32"}
    assert result.model.get_layer("head").compute_dtype == "float32"
    assert (tmp_path / "run" / "export" / "1" / "saved_model.pb").is_file()
    loaded = tfft.load(tmp_path / "run")
    rows = ["a red sky"]
    np.testing.assert_allclose(loaded.logits(rows), result.logits(rows), atol=2e-2)


def test_pairs_of_texts(config, tmp_path):
    rows = [("red", "the sky", "yes"), ("the apple", "green", "no")] * 40
    text = "a,b,answer\n" + "".join(f"{x},{y},{z}\n" for x, y, z in rows)
    (tmp_path / "pairs.csv").write_text(text)
    data = {"train": str(tmp_path / "pairs.csv"), "text": "a", "text_pair": "b"}
    changes = {"data": {**data, "label": "answer", "test": None}, "export": {"enabled": True}}
    result = run(config, tmp_path / "run", **changes)
    assert result.predict([("red", "the sky")])[0]["label"] in ("yes", "no")
    with pytest.raises(UserError, match="a row must be a pair of texts"):
        result.predict(["one text"])


def test_class_weights_smoothing_and_focal_loss_change_the_training(plain, config, tmp_path):
    plain = weights(plain)
    balanced = {"class_weights": "balanced", "label_smoothing": 0.1}
    for name, task in (("a", balanced), ("b", {"loss": "focal", "class_weights": {"red": 2.0}})):
        trained = weights(run(config, tmp_path / name, task=task))
        kernel = "head/logits/kernel"
        assert np.isfinite(trained[kernel]).all() and (trained[kernel] != plain[kernel]).any()


def test_the_head_of_a_checkpoint_keeps_its_labels(config, tmp_path):
    golden = Path(__file__).parent / "golden" / "encoders" / "bert_classifier"
    folder = shutil.copytree(golden, tmp_path / "checkpoint")
    tiny = Path(config["model"]["backbone"].removeprefix("hf:"))
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(tiny / name, folder / name)
    (tmp_path / "t.csv").write_text("text,label\n" + "the sky,two\na red apple,zero\n" * 30)
    changes = {
        "model": {"backbone": f"hf:{folder}", "head": "checkpoint"},
        "data": {"train": str(tmp_path / "t.csv"), "test": None},
        "method": {"name": "head"},
    }
    result = run(config, tmp_path / "run", **changes)
    assert result.labels == ["zero", "one", "two"]
    exported = result.export_huggingface(tmp_path / "hf")
    assert json.loads((exported / "config.json").read_text())["id2label"]["2"] == "two"


def test_a_non_finite_loss_stops_the_run(config, tmp_path):
    changes = {"optimizer": {"learning_rate": 1e30, "clip_norm": None}, "train": {"epochs": 20}}
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step \d+; lower"):
        run(config, tmp_path / "run", **changes)


def test_bad_rows_are_listed_in_the_run(config, tmp_path):
    path = tmp_path / "train.csv"
    path.write_text(path.read_text() + "one,two,three\n")
    run(config, tmp_path / "run", data={"on_bad_row": "skip"}, method={"name": "head"})
    assert "train.csv:122: 3 columns" in (tmp_path / "run" / "bad_rows.txt").read_text()


def test_tensorboard_events_are_written(config, tmp_path):
    pytest.importorskip("tensorboard")
    run(config, tmp_path / "run", train={"tensorboard": True}, method={"name": "head"})
    assert list((tmp_path / "run" / "tensorboard").rglob("events*"))


def test_a_checkpoint_of_another_model_is_refused(plain, config, tmp_path):
    other, *_ = setup.prepare(parse({**config, "method": {"name": "head"}}), tmp_path / "other")
    checkpoints = Checkpoints(plain.workdir / "checkpoints", 2)
    with pytest.raises(UserError, match="is of another model"):
        checkpoints.restore(other.model)


def test_the_module_train_is_callable():
    assert callable(tfft.train) and tfft.train is train and callable(train.run)
