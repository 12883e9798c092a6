"""The contract of every task of the table, from data to a served model.

A new task needs an entry in `samples.SAMPLES`. The clients of TF Serving are in
tests/serve/test_tasks.py.
"""

import json

import numpy as np
import pytest
import yaml

import tfft
from tests.console import run_command
from tests.tasks.samples import SAMPLES, model_section, text_image_data
from tfft import train
from tfft.config import TASK_SECTIONS, dump, load, parse
from tfft.config.tasks import OPTIONAL_KEYS
from tfft.tasks import TASKS
from tfft.utils.errors import Interrupted, UserError

pytestmark = pytest.mark.slow

BOUND = 1e-5  # largest difference of a probability
# The names of the baselines, where they are not those of texts with classes.
BASELINES = {
    "image_classification": {"majority", "tiny"},
    "image_multilabel": {"majority", "tiny"},
    "text_regression": {"mean", "tfidf"},
    "token_classification": {"majority", "dictionary"},
    "question_answering": {"no_answer", "sentence"},
    "text_count": {"mean", "tfidf"},  # of test_new_task.py
}
CASES = [*SAMPLES.items(), ("text_classification", text_image_data)]
MIRRORED = {"strategy": "mirrored", "devices": ["CPU:0", "CPU:1"]}


def test_every_task_has_a_sample():
    assert set(SAMPLES) == set(TASKS) == set(TASK_SECTIONS)


@pytest.fixture(scope="module", params=CASES, ids=[f"{t}-{d.__name__}" for t, d in CASES])
def raw(request, tiny, tmp_path_factory):
    """A config of the task without dropout and export."""
    name, build_data = request.param
    data, backbone, *task = build_data(tiny, tmp_path_factory.mktemp("data"))
    return {
        "data": {**data, "validation": {"fraction": 0.25}},
        "model": model_section(backbone, dropout=0.0),
        "task": {"name": name, "dropout": 0.0, **dict(*task)},
        "optimizer": {"learning_rate": 1e-2, "epsilon": 1e-5},
        "train": {"epochs": 2, "batch_size": 8},
        "evaluate": {"bootstrap": 20},
        "export": {"enabled": False, "verify_rows": 32},
    }


@pytest.fixture(scope="module")
def run(raw, tmp_path_factory):
    return tfft.train(raw, tmp_path_factory.mktemp("run") / "run")


def rows_of(run, count=5):
    return [run.datasets.train.raw_row(index) for index in range(count)]


def weights(run):
    return {variable.path: np.array(variable.value) for variable in run.model.weights}


def assert_same_weights(a, b, bound=0.0):
    expected = weights(b)
    for path, value in weights(a).items():
        assert np.abs(value - expected[path]).max() <= bound, path


def assert_close(actual, expected):
    """Compare answers: numbers within the bound, everything else exactly."""
    if isinstance(expected, list):
        assert len(actual) == len(expected)
        for pair in zip(actual, expected, strict=True):
            assert_close(*pair)
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for name in expected:
            assert_close(actual[name], expected[name])
    elif isinstance(expected, float):
        assert actual == pytest.approx(expected, abs=BOUND, rel=BOUND)
    else:
        assert actual == expected


def command(*arguments, code=0, stdin=""):
    actual, out, err = run_command(*arguments, stdin=stdin)
    assert actual == code and "Traceback" not in err, err
    return out, err


def test_config_is_read_back_shown_and_profiled(raw, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(dump(parse(raw)))
    assert load(path) == parse(raw)
    out, _ = command("show", f"--config={path}")
    assert f"name: {raw['task']['name']}" in out and "parameters are trainable" in out
    out, _ = command("profile", f"--config={path}")
    assert "train" in out


def test_init_writes_a_config_of_the_task(raw, tmp_path):
    if len(parse(raw).reads) > 1:
        pytest.skip("tfft init writes configs of one backbone")
    source = parse(raw).data.train
    path = tmp_path / "written.yaml"
    backbone = raw["model"]["backbone"]
    command("init", f"--data={source.path}", f"--output={path}", f"--backbone={backbone}")
    assert load(path).task.name == raw["task"]["name"]


def test_metrics_have_intervals_baselines_and_a_report(run):
    task = run.config.task
    names = {name.removeprefix("validation/") for name in run.metrics}
    metrics = set(task.metrics) - {"top_5_accuracy"}  # of more than five classes only
    assert metrics <= names and f"{run.config.train.metric}/low" in names
    assert run.config.train.metric == next(iter(task.metrics))
    listed = {name.split("/")[1] for name in names if name.startswith("baseline/")}
    assert listed == BASELINES.get(task.name, {"majority", "tfidf"})
    for name in ("report.html", "MODEL_CARD.md", "mask.txt", "best/model.json"):
        assert (run.workdir / name).is_file(), name


def test_interrupted_run_resumes_to_the_bit(raw, run, tmp_path):
    config = parse(raw)
    with pytest.raises(Interrupted, match="interrupted at step"):
        train.run(config, tmp_path / "parts", epochs=1)
    resumed = train.run(config, tmp_path / "parts")
    assert_same_weights(resumed, run)
    assert resumed.metrics == run.metrics


def test_loaded_evaluated_exported_and_predicted_alike(run, tmp_path):
    rows = rows_of(run)
    expected = run.predict(rows)
    loaded = tfft.load(run.workdir)
    np.testing.assert_array_equal(loaded.logits(rows), run.logits(rows))
    metrics = tmp_path / "metrics.json"
    command("evaluate", f"--workdir={run.workdir}", "--split=validation", f"--output={metrics}")
    metric = f"validation/{run.config.train.metric}"
    assert json.loads(metrics.read_text())[metric] == pytest.approx(run.metrics[metric], abs=1e-6)
    folder = tmp_path / "export"
    command("export", f"--workdir={run.workdir}", f"--output={folder}")
    columns = run.inputs.columns
    lines = "".join(
        json.dumps(dict(zip(columns, map(str, row), strict=True))) + "\n" for row in rows
    )
    for model in (f"--workdir={run.workdir}", f"--export={folder}"):
        out, _ = command("predict", model, "--input_format=jsonl", stdin=lines)
        for line, answer in zip(out.splitlines(), expected, strict=True):
            actual = json.loads(line)
            for name, value in answer.items():
                assert_close(actual[name], value)


def test_cached_features_train_the_same_head(raw, tmp_path):
    config = {**raw, "method": {"name": "head"}}
    config["data"] = {**raw["data"], "cache_dir": str(tmp_path / "cache")}
    runs = [
        tfft.train(
            {**config, "train": {**raw["train"], "cache_features": cached}}, tmp_path / str(cached)
        )
        for cached in (False, True)
    ]
    assert list((tmp_path / "cache" / "prefix").iterdir())
    assert_same_weights(*runs, 1e-3)


def test_two_replicas_train_the_same_model(raw, run, tmp_path):
    mirrored = tfft.train({**raw, "distribute": MIRRORED}, tmp_path / "run")
    assert_same_weights(mirrored, run, 1e-4)


def test_one_static_width_is_compiled_by_xla(raw, tmp_path):
    """What a TPU needs."""
    changes = {"buckets": 1, "jit_compile": True, "deterministic": False}
    compiled = tfft.train({**raw, "train": {**raw["train"], **changes}}, tmp_path / "run")
    assert np.isfinite(compiled.metrics[f"validation/{compiled.config.train.metric}"])


def test_lora_is_merged_in_the_export(raw, tmp_path, capfd):
    config = {**raw, "method": {"name": "lora", "rank": 2}, "export": {"verify_rows": 32}}
    run = tfft.train(config, tmp_path / "run")
    assert "layers merged" in capfd.readouterr().err
    assert (run.workdir / "export" / "1" / "saved_model.pb").is_file()
    page = (run.workdir / "report.html").read_text()
    assert all(f"{column}&quot;:" in page for column in run.inputs.columns)  # in a request


def test_search_of_two_trials(raw, tmp_path):
    rate = {"search": "loguniform", "min": 1e-3, "max": 1e-2}
    tune = {"trials": 2, "final_seeds": 0, "advise": False}
    config = {**raw, "optimizer": {"learning_rate": rate}, "tune": tune}
    config["train"] = {**raw["train"], "epochs": 1}
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(config))
    command("tune", f"--config={path}", f"--workdir={tmp_path / 'search'}")
    assert (tmp_path / "search" / "leaderboard.csv").read_text().count("COMPLETED") == 2


def test_auto_chooses_a_method(raw, tmp_path):
    changes = {"method": {"name": "auto"}, "optimizer": {}, "train": {"epochs": 1}}
    run = tfft.train({**raw, **changes}, tmp_path / "run")
    assert run.config.method.name != "auto" and (run.workdir / "advice.txt").is_file()


CHANGES = {
    "augmentation": {"augmentation": {"flip": "horizontal", "mixup": 0.2}},
    "data.image": {"data": {"image": "label"}},
    "data.labels": {"data": {"labels": ["red", "blue"]}},
    "data.text_pair": {"data": {"text_pair": "label"}},
    "evaluate.test_time_augmentation": {"evaluate": {"test_time_augmentation": "mirrored"}},
    "regularization.distillation": {"regularization": {"distillation": {"teacher": "teacher"}}},
    "regularization.r_drop": {"regularization": {"r_drop": {}}},
}


@pytest.mark.parametrize("key", OPTIONAL_KEYS)
def test_optional_keys_work_or_are_refused(raw, run, tmp_path, key):
    changes = json.loads(json.dumps(CHANGES[key]).replace('teacher"}', f'{run.workdir}"}}'))
    if key not in run.config.supports:
        with pytest.raises(UserError, match=f"{key}: is for "):
            parse(raw, changes=changes)
        return
    if key == "data.labels":  # tests/data trains with them
        assert parse(raw, changes=changes).data.labels == ["red", "blue"]
        return
    if key == "data.image":  # text_image_data and the tasks on images train with it
        with pytest.raises(UserError, match=r"must be different|must hold `text` and `image`"):
            parse(raw, changes=changes)
        return
    if key == "augmentation" and "text" in run.config.reads:
        with pytest.raises(UserError, match="mixup and cutmix mix images, not the texts"):
            parse(raw, changes=changes)
        changes = {"augmentation": {"flip": "horizontal"}}
    if key == "data.text_pair":  # tests/serve/test_tasks.py trains on pairs
        with pytest.raises(UserError, match=r"text, text_pair.* and label must be different"):
            parse(raw, changes=changes)
        return
    changed = tfft.train(raw, tmp_path / "run", **changes)
    assert changed.metrics != run.metrics


def test_bad_rows_are_named_or_skipped(raw, tmp_path):
    source = parse(raw).data.train
    if source.source == "images":
        pytest.skip("a folder of images has no rows")
    path = tmp_path / f"rows.{source.source}"
    with open(source.path) as file:
        lines = file.read().splitlines()
    if source.source == "squad":
        path = path.with_suffix(".json")
        lines = [lines[0].replace('"answer_start": 11', '"answer_start": 12', 1)]
    else:
        if "image" in parse(raw).reads:  # paths are relative to the table
            folder = source.path.rpartition("/")[0]
            lines = [lines[0], *(f"{folder}/{line}" for line in lines[1:])]
        lines = [*lines[:3], "a,b,c", *lines[3:]]
    path.write_text("\n".join(lines) + "\n")
    changes = {"data": {"train": str(path)}}
    with pytest.raises(UserError, match=r"rows\.((csv|conll):4|json:1/1/1): "):
        tfft.train(raw, tmp_path / "refused", **changes)
    changes["data"]["on_bad_row"] = "skip"
    run = tfft.train(raw, tmp_path / "skipped", **changes)
    assert run.metrics["steps"] > 0
