"""`tfft init` on questions about contexts: SQuAD files, and rows with answers."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cli.init_command import (
    answer_objects,
    init,
    questions,
    refused,
    with_positions,
    write_jsonl,
    write_squad,
)
from tests.console import run_command
from tfft.config import Fraction

pytestmark = pytest.mark.usefixtures("folder")


def test_squad(folder, tiny):
    write_squad(folder / "squad.json", questions(60))
    config, text, out, err = init(
        "--data=squad.json", f"--backbone=hf:{with_positions(tiny, folder / 'bert', 128)}"
    )
    assert config.task.name == "question_answering" and config.data.train.source == "squad"
    data = config.data
    assert (data.question, data.context, data.label) == ("question", "context", "answers")
    assert "question:" not in text and "label:" not in text and not err
    assert "60 questions, 33 % without an answer" in text and data.max_length == 96
    assert "longer contexts are divided into windows" in text
    assert out.startswith(
        "squad.yaml: question_answering of 'question', 'context' by 'answers', 60 rows\n"
    )
    code, out, err = run_command("show", "--config=squad.yaml")
    assert code == 0 and "name: question_answering" in out, err


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_tables(folder, tiny, suffix):
    rows = [
        {("passage" if key == "context" else key): value for key, value in row.items()}
        for row in answer_objects(questions(60))
    ]
    write_jsonl(folder / "t.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), folder / "t.parquet")
    config, text, _, err = init(
        f"--data=t.{suffix}", f"--backbone=hf:{with_positions(tiny, folder / 'bert', 128)}"
    )
    assert config.task.name == "question_answering" and not err
    assert (config.data.context, config.data.label) == ("passage", "answers")
    assert "60 questions, 33 % without an answer" in text
    code, out, err = run_command("show", "--config=t.yaml")
    assert code == 0 and "name: question_answering" in out, err


def test_long_contexts(folder):
    rows = [
        {**row, "context": row["context"] + " and the grass is green" * 60} for row in questions(9)
    ]
    write_squad(folder / "t.json", rows)
    assert init("--data=t.json")[0].data.max_length == 384


def test_splits(folder):
    for name in ("train-v2.0", "dev-v2.0", "test-v2.0"):
        write_squad(folder / f"{name}.json", questions(30))
    config, *_ = init("--data=train-v2.0.json")
    assert config.data.validation.path == "dev-v2.0.json"
    assert (config.data.test.path, config.data.test.source) == ("test-v2.0.json", "squad")
    write_squad(folder / "dev-v2.0.json", [{**row, "answers": []} for row in questions(30)])
    hidden = [{k: v for k, v in row.items() if k != "answers"} for row in questions(30)]
    write_squad(folder / "test-v2.0.json", hidden)
    config, _, _, err = init("--data=train-v2.0.json", "--output=2.yaml")
    assert isinstance(config.data.validation, Fraction) and config.data.test is None
    assert "dev-v2.0.json is not used: it has no answers" in err
    assert "test-v2.0.json:1/1/1: no key 'answers'" in err


def test_unusable_rows_are_skipped_and_named(folder):
    rows = questions(60)
    rows[1]["answers"][0]["answer_start"] += 1
    for name, place in (("t.json", "t.json:1/2/1"), ("t.jsonl", "t.jsonl:2")):
        write_squad(folder / name, rows) if name == "t.json" else write_jsonl(folder / name, rows)
        config, _, _, err = init(f"--data={name}", f"--output={name}.yaml")
        assert config.data.on_bad_row == "skip" and f"first: {place}: " in err


def test_tfds(prepared_questions):
    config, text, *_ = init(f"--data={prepared_questions}", "--output=c.yaml")
    assert config.task.name == "question_answering" and config.data.train.source == "tfds"
    assert (config.data.question, config.data.context) == ("question", "context")
    assert config.data.label == "answers" and config.data.test.split == "test"
    assert config.data.on_bad_row == "stop" and "30 questions, 33 % without an answer" in text


def test_a_tfds_set_that_is_not_downloaded():
    config, *_ = init("--data=tfds:squad")
    data = config.data
    assert (data.question, data.context, data.label) == ("question", "context", "answers")
    assert config.task.name == "question_answering" and data.max_length == 384


WRONG = {
    "a list": ([], (), "must hold an object with a list `data`, as SQuAD does. Received: a list"),
    "another object": ({"rows": []}, (), "Received: the keys 'rows'"),
    "no rows": ({"data": []}, (), "t.json holds no row that can be read"),
    "no usable row": (
        {"data": [{"question": "a", "context": "b", "id": "1"}]},
        (),
        "t.json holds no row that can be read: t.json:1: no key 'answers'",
    ),
    "no answer": (
        {"data": [{"question": "a", "context": "b", "id": "1", "answers": []}]},
        (),
        "t.json: no question has an answer",
    ),
    "a column": ({"data": questions(9)}, ("--label=answer",), "did you mean 'answers'?"),
    "another column": ({"data": questions(9)}, ("--label=id",), "--label: rows of SQuAD files"),
    "a text": ({"data": questions(9)}, ("--text=question",), "--text: rows of SQuAD files have"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_one_line(folder, name):
    content, arguments, expected = WRONG[name]
    (folder / "t.json").write_text(json.dumps(content))
    refused(expected, "--data=t.json", *arguments)
