"""Truncated or changed files of runs and exports: one line each, no traceback."""

import json
from pathlib import Path

import pytest
import yaml

from tests.console import run_command
from tfft.utils.errors import UserError


def assert_one_error(code, err, expected, exit_code=2):
    lines = [line for line in err.splitlines() if line.startswith("tfft: ")]
    assert code == exit_code and len(lines) == 1 and "Traceback" not in err, err
    assert expected in lines[0]


def test_truncated_run_description_is_one_error(config, tmp_path):
    best = tmp_path / "run" / "best"
    best.mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    (best / "weights.safetensors").write_bytes(b"")
    description = {"backbone": {}, "labels": ["a"], "fingerprint": "x", "trained": None}
    complete = json.dumps({**description, "fitted": {}})
    for text, reason in [
        (complete[:40], "model.json: not valid JSON"),
        ("[]", "model.json: must hold a JSON object"),
        (complete.replace("labels", "lables"), "model.json: 'labels' is missing"),
        (complete.replace('["a"]', "3"), "model.json: 'labels' is missing or of the wrong type"),
        ("\x00" * 9, "model.json: not valid JSON"),
    ]:
        (best / "model.json").write_text(text)
        for command in ("predict", "evaluate"):
            code, _, err = run_command(command, f"--workdir={tmp_path / 'run'}")
            assert_one_error(code, err, reason)
    (best / "model.json").write_text(complete)
    (tmp_path / "run" / "config.yaml").write_text("data: {train")
    code, _, err = run_command("evaluate", f"--workdir={tmp_path / 'run'}")
    assert_one_error(code, err, "config.yaml:1:13: not valid YAML")


def test_truncated_config_of_a_run_directory_is_one_error(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("data: {train")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    code, _, err = run_command(
        "train", f"--config={tmp_path / 'c.yaml'}", f"--workdir={tmp_path / 'run'}"
    )
    assert_one_error(code, err, "config.yaml:1:13: not valid YAML")


def test_truncated_export_is_one_error(tmp_path):
    extra = tmp_path / "1" / "assets.extra"
    extra.mkdir(parents=True)
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"\x08\x01torn")
    for text, reason in [
        ('{"task": "text_cl', "tfft.json: not valid JSON"),
        ('{"task": "text_classification"}', "tfft.json: 'labels' is missing"),
        ('{"task": "text_classification", "labels": ["a"]}', "tfft.json: 'fitted' is missing"),
        (
            '{"task": "text_classification", "labels": ["a"], "fitted": {}}',
            "not a SavedModel that TensorFlow",
        ),
    ]:
        (extra / "tfft.json").write_text(text)
        code, _, err = run_command("predict", f"--export={tmp_path}")
        assert_one_error(code, err, reason)


def test_truncated_inputs_are_errors(tiny, tmp_path):
    from tfft import preprocess

    inputs = preprocess.TextInputs(preprocess.tokenizer.from_checkpoint(str(tiny)), 8)
    inputs.save(tmp_path)
    assert preprocess.restore(tmp_path).fingerprint == inputs.fingerprint
    contents = {path: path.read_bytes() for path in Path(tmp_path).iterdir()}
    for path, content in contents.items():
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError) as error:
            preprocess.restore(tmp_path)
        assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)
        path.write_bytes(content)
    (tmp_path / "inputs.json").write_text('{"image_spec": {"size": 3}}')
    with pytest.raises(UserError, match=r"tokenizer or inputs\.json cannot be read"):
        preprocess.restore(tmp_path)
