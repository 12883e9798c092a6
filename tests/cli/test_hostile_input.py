"""Unexpected rows, descriptions and errors: one line each, no traceback."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from tests.console import command as run_command
from tfft.utils.errors import UserError


@pytest.fixture
def rows_of():
    run_command("predict", "--help")  # imports the module, which defines its flags
    return sys.modules["tfft.cli.predict"].rows_of


TEXT_COLUMNS = (("review",), ("text",))
PAIR_COLUMNS = (("a", "b"), ("text", "text_pair"))


def write_file(folder, text, name="rows.txt"):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_plain_text_may_begin_with_a_brace(rows_of, tmp_path):
    lines = ["{x} is a set", '{"text": "a"', "[1]", "1"]  # the first line decides
    path = write_file(tmp_path, "\n".join(lines))
    assert list(rows_of(path, *TEXT_COLUMNS)) == [(line,) for line in lines]
    path = write_file(tmp_path, '{"text": "a"}\n\n{"review": "{b"}\n')
    assert list(rows_of(path, *TEXT_COLUMNS)) == [("a",), ("{b",)]
    assert next(rows_of(path, *TEXT_COLUMNS, "text")) == ('{"text": "a"}',)
    path = write_file(tmp_path, '{"text": "a"\n{"text": "b"}\n')
    with pytest.raises(UserError, match=r"rows\.txt:1: not valid JSON .*; --input_format=text"):
        list(rows_of(path, *TEXT_COLUMNS))
    assert next(rows_of(path, *TEXT_COLUMNS, "text")) == ('{"text": "a"',)
    path = write_file(tmp_path, '{"text": "a"\n', "rows.jsonl")
    with pytest.raises(UserError, match=r"rows\.jsonl:1: not valid JSON"):
        list(rows_of(path, *TEXT_COLUMNS))


@pytest.mark.parametrize(
    ("line", "keys", "reason"),
    [
        (
            '{"text": 1}',
            TEXT_COLUMNS,
            "1: must be an object with text at 'review' (--input_format=text",
        ),
        ('{"text": "\\ud800"}', TEXT_COLUMNS, "1: holds a lone surrogate"),
        ('{"text": ' + "9" * 5000 + "}", TEXT_COLUMNS, "1: not valid JSON (Exceeds the limit"),
        ('{"text": ' + "[" * 100_000, TEXT_COLUMNS, "1: not valid JSON (nested too deep)"),
        ("a text", PAIR_COLUMNS, "1: rows of a pair must be jsonl with a and b"),
        ('{"a": "x"}', PAIR_COLUMNS, "1: must be an object with text at 'a' and 'b'"),
    ],
)
def test_invalid_lines_are_errors(rows_of, tmp_path, line, keys, reason):
    path = write_file(tmp_path, line)
    with pytest.raises(UserError) as error:
        list(rows_of(path, *keys, "auto" if keys is PAIR_COLUMNS else "jsonl"))
    assert str(error.value).startswith(f"{path}:{reason}")


def test_standard_input_is_utf8_in_any_locale(rows_of, monkeypatch):
    # The choice of Python under LC_ALL=C, and of another locale.
    for encoding in ("utf-8", "latin-1"):
        raw = io.BytesIO("\ufeffcaf\u00e9\n".encode())
        stdin = io.TextIOWrapper(raw, encoding, errors="surrogateescape")
        monkeypatch.setattr(sys, "stdin", stdin)
        assert list(rows_of(None, *TEXT_COLUMNS)) == [("caf\u00e9",)]
        stdin = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding, errors="surrogateescape")
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(UserError, match="standard input: not UTF-8 text"):
            list(rows_of(None, *TEXT_COLUMNS))


def assert_one_error(code, err, expected, exit_code=2):
    lines = [line for line in err.splitlines() if line.startswith("tfft: ")]
    assert code == exit_code and len(lines) == 1 and "Traceback" not in err, err
    assert expected in lines[0]


def test_truncated_run_description_is_one_error(config, tmp_path):
    best = tmp_path / "run" / "best"
    best.mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    (best / "weights.safetensors").write_bytes(b"")
    complete = json.dumps({"backbone": {}, "labels": ["a"], "fingerprint": "x", "trained": None})
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
        ('{"task": "text_classification", "labels": ["a"]}', "not a SavedModel that TensorFlow"),
    ]:
        (extra / "tfft.json").write_text(text)
        code, _, err = run_command("predict", f"--export={tmp_path}")
        assert_one_error(code, err, reason)


def test_unexpected_error_is_one_line_and_a_log_file(monkeypatch, tmp_path):
    def schema():
        raise ZeroDivisionError("of an unexpected\nkind \udcff")

    monkeypatch.setattr("tfft.config.schema", schema)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, out, err = run_command("schema")
    (log,) = tmp_path.glob("tfft-*.log")
    assert_one_error(code, err, "ZeroDivisionError: of an unexpected kind \udcff; ", exit_code=1)
    assert err.endswith(f"the traceback is in {log}\n") and not out
    text = log.read_text()
    assert "Traceback (most recent call last)" in text and "in schema" in text
    assert os.stat(log).st_mode & 0o777 == 0o600


def test_lone_surrogate_in_python_is_an_error(tiny):
    from tfft.preprocess import TextInputs, tokenizer

    inputs = TextInputs(tokenizer.from_checkpoint(str(tiny)), 8)
    with pytest.raises(UserError, match="holds a lone surrogate"):
        inputs.row("\ud800")


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
