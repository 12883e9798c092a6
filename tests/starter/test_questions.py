"""Which columns hold questions, their contexts and answers."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cli.init_command import answer_objects, questions, write_jsonl, write_squad
from tfft.starter import head, roles
from tfft.starter.questions import ANSWER, NO_ANSWER, count
from tfft.starter.request import source_of
from tfft.utils.errors import UserError


def decide(path, **columns):
    """Return the first rows of a file and their roles."""
    start = head.read(source_of(str(path)), "data.train")
    return start, roles.decide(start, columns)


def renamed(rows, **names):
    """Return rows with other names for some columns."""
    return [{names.get(key, key): value for key, value in row.items()} for row in rows]


def write(path, form, rows):
    """Write rows in a form, and return the path of the file."""
    name, _, kind = form.partition(" of ")
    rows = answer_objects(rows) if kind == "objects" else rows
    path = path / f"t.{'json' if name in ('nested', 'flat') else name}"
    if name == "nested":
        write_squad(path, rows)
    elif name == "flat":
        path.write_text(json.dumps({"data": rows}))
    elif name == "jsonl":
        write_jsonl(path, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


FORMS = [
    "nested",
    "flat of lists",
    "flat of objects",
    "jsonl of lists",
    "jsonl of objects",
    "parquet of lists",
    "parquet of objects",
]


@pytest.mark.parametrize("form", FORMS)
def test_each_form(tmp_path, form):
    start, columns = decide(write(tmp_path, form, questions(30)))
    assert (columns.targets, columns.columns) == ("answers", ["question", "context", "answers"])
    assert not columns.doubts
    assert count(start, "context", "answers") == {ANSWER: 20, NO_ANSWER: 10}
    assert (start.rows, start.total, start.complete) == (30, 30, True)


@pytest.mark.parametrize(
    "names",
    [
        ("query", "passage", "answer"),
        ("question", "paragraph", "answers"),
        ("ask", "body", "spots"),
    ],
)
def test_other_names(tmp_path, names):
    keys = dict(zip(("question", "context", "answers"), names, strict=True))
    write_jsonl(tmp_path / "t.jsonl", renamed(questions(30), **keys))
    _, columns = decide(tmp_path / "t.jsonl")
    assert columns.columns == list(names) and not columns.doubts


def test_the_context_is_the_column_that_holds_the_answers(tmp_path):
    rows = [
        {**row, "context": "x" + row["context"], "evidence": row["context"]}
        for row in questions(30)
    ]
    write_jsonl(tmp_path / "t.jsonl", rows)
    _, columns = decide(tmp_path / "t.jsonl")
    assert (columns.context, columns.question) == ("evidence", "question")
    _, columns = decide(tmp_path / "t.jsonl", question="context")
    assert (columns.context, columns.question) == ("evidence", "context")


def test_further_candidates_are_doubted_and_flags_decide(tmp_path):
    rows = [
        {**row, "plausible": row["right"], "other": f"what is {row['id']}?"}
        for row in renamed(questions(30), question="ask", answers="right")
    ]
    write_jsonl(tmp_path / "t.jsonl", rows)
    _, columns = decide(tmp_path / "t.jsonl")
    assert columns.columns == ["ask", "context", "right"]
    assert columns.doubts == {
        "label": "'plausible' could be the label too; --label= chooses",
        "question": "'other' could be the question too; --question= chooses",
    }
    chosen = {"question": "other", "context": "context", "label": "plausible"}
    _, columns = decide(tmp_path / "t.jsonl", **chosen)
    assert columns.columns == list(chosen.values()) and not columns.doubts


def test_other_tasks_of_the_same_rows(tmp_path):
    rows = [{**row, "topic": "ab"[n % 2]} for n, row in enumerate(questions(30))]
    write_jsonl(tmp_path / "t.jsonl", rows)
    assert decide(tmp_path / "t.jsonl", label="topic")[1].targets == "class"
    columns = decide(tmp_path / "t.jsonl", text="question")[1]
    assert (columns.targets, columns.label) == ("class", "topic")


def test_objects_without_starts_are_no_answers(tmp_path):
    rows = [
        {**row, "answers": {"text": ["x"]}, "label": "ab"[len(row["id"]) - 1]}
        for row in questions(30)
    ]
    write_jsonl(tmp_path / "t.jsonl", rows)
    assert decide(tmp_path / "t.jsonl")[1].targets == "class"


def shifted(row):
    answers = [{**answer, "answer_start": answer["answer_start"] + 1} for answer in row["answers"]]
    return {**row, "answers": answers}


WRONG = {
    "a column": (dict, {"question": "qestion"}, "did you mean 'question'?"),
    "no answers": (
        lambda row: {**row, "answers": "red"},
        {"context": "context"},
        "no column holds answers, objects with a text and an answer_start; --label= names it",
    ),
    "another label": (dict, {"label": "title", "question": "question"}, "no column holds answers"),
    "wrong starts": (shifted, {}, "In column 'context': answer 1: "),
    "another context": (dict, {"context": "title"}, "In column 'title': answer 1: "),
    "no answer in any row": (
        lambda row: {**row, "answers": {"text": [], "answer_start": []}},
        {},
        "no column holds the answers of column 'answers' where they start. In column 'context': "
        "no row has an answer",
    ),
    "no question": (
        lambda row: {"context": row["context"], "answers": row["answers"]},
        {},
        "no column of questions can be identified; pass --question=COLUMN",
    ),
    "a text": (dict, {"question": "question", "text": "title"}, "cannot be given with --text"),
    "an image": (dict, {"context": "context", "image": "id"}, "cannot be given with --image"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes(tmp_path, name):
    change, columns, expected = WRONG[name]
    write_jsonl(tmp_path / "t.jsonl", map(change, questions(30)))
    with pytest.raises(UserError) as error:
        decide(tmp_path / "t.jsonl", **columns)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_large_files_are_counted(tmp_path):
    write_squad(tmp_path / "t.json", questions(2_100))
    start, _ = decide(tmp_path / "t.json")
    assert (start.rows, start.total, start.complete) == (2_000, 2_100, False)
