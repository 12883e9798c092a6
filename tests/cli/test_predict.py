"""Rows that `tfft predict` reads: formats, encodings, invalid lines."""

import io
import sys

import pytest

from tests.console import run_command
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
            "1: must be an object with strings at 'review' (--input_format=text",
        ),
        ('{"text": "\\ud800"}', TEXT_COLUMNS, "1: holds a lone surrogate"),
        ('{"text": ' + "9" * 5000 + "}", TEXT_COLUMNS, "1: not valid JSON (Exceeds the limit"),
        ('{"text": ' + "[" * 100_000, TEXT_COLUMNS, "1: not valid JSON (nested too deep)"),
        ("a text", PAIR_COLUMNS, "1: rows of several columns must be jsonl with a and b"),
        ('{"a": "x"}', PAIR_COLUMNS, "1: must be an object with strings at 'a' and 'b'"),
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


def test_lone_surrogate_in_python_is_an_error(tiny):
    from tfft.preprocess import TextInputs, tokenizer

    inputs = TextInputs(tokenizer.from_checkpoint(str(tiny)), 8)
    with pytest.raises(UserError, match="holds a lone surrogate"):
        inputs.row("\ud800")
