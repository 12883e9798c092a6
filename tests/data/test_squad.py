"""The reader of SQuAD's files: all forms give the same questions; mistakes have their place."""

import json

import pytest
from hypothesis import strategies as st

from tests.fuzzing import EXAMPLES, fuzz, mutated, replaced
from tfft.config import Source
from tfft.data import squad
from tfft.data.records import BadRow
from tfft.data.squad import Question
from tfft.utils.errors import UserError

CONTEXT = "Zoë saw the red barn. The barn was old; the cow was not."
ANSWERS = [{"text": "the red barn", "answer_start": 8}, {"text": "red barn", "answer_start": 12}]
ANSWERABLE = {"id": "q1", "question": "What did Zoë see?", "answers": ANSWERS}
UNANSWERABLE = {
    "id": "q2",
    "question": "Who painted it?",
    "answers": [],
    "is_impossible": True,
    "plausible_answers": [{"text": "Zoë", "answer_start": 999}],
}


def document(*questions, context=CONTEXT):
    paragraph = {"context": context, "qas": list(questions)}
    return {"version": "v2.0", "data": [{"title": "Barns", "paragraphs": [paragraph]}]}


def read(folder, content, name="t.json"):
    path = folder / name
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return list(squad.read(Source(source="jsonl", path=str(path)), "data.train"))


def reason(folder, **changes):
    """Return why a question with other values is a bad row; None leaves a key out."""
    question = {k: v for k, v in {**ANSWERABLE, **changes}.items() if v is not None}
    (row,) = read(folder, document(question, context=changes.get("context", CONTEXT)))
    assert isinstance(row, BadRow) and row.place == f"{folder}/t.json:1/1/1"
    assert "\n" not in row.reason and len(row.reason) < 300
    return row.reason


def test_nested_questions_have_the_context_of_their_paragraph(tmp_path):
    content = document(ANSWERABLE, UNANSWERABLE)
    content["data"].append({"paragraphs": [{"context": "b", "qas": [{**ANSWERABLE, "id": 7}]}]})
    content["data"][1]["paragraphs"][0]["qas"][0]["answers"] = [{"text": "b", "answer_start": 0}]
    assert read(tmp_path, content) == [
        Question(
            f"{tmp_path}/t.json:1/1/1",
            "q1",
            "What did Zoë see?",
            CONTEXT,
            (("the red barn", 8), ("red barn", 12)),
        ),
        Question(f"{tmp_path}/t.json:1/1/2", "q2", "Who painted it?", CONTEXT, ()),
        Question(f"{tmp_path}/t.json:2/1/1", "7", "What did Zoë see?", "b", (("b", 0),)),
    ]


def test_flat_records_give_the_same_questions(tmp_path):
    columns = {"text": [a["text"] for a in ANSWERS], "answer_start": [8, 12]}
    records = [
        {**ANSWERABLE, "context": CONTEXT},
        {**ANSWERABLE, "id": "q3", "context": CONTEXT, "answers": columns},
        {"id": "q4", "question": "?", "context": CONTEXT, "answers": {k: [] for k in columns}},
    ]
    expected = [(("the red barn", 8), ("red barn", 12))] * 2 + [()]
    lines = read(tmp_path, "\n".join(map(json.dumps, records)), "t.jsonl")
    assert [row.answers for row in lines] == expected
    assert [row.place for row in lines] == [f"{tmp_path}/t.jsonl:{i}" for i in (1, 2, 3)]
    items = read(tmp_path, {"data": records})
    assert [row.answers for row in items] == expected
    assert [row.place for row in items] == [f"{tmp_path}/t.json:{i}" for i in (1, 2, 3)]


def test_a_misplaced_answer_says_where_its_text_is(tmp_path):
    def misplaced(text, start):
        return reason(tmp_path, answers=[ANSWERS[0], {"text": text, "answer_start": start}])

    assert misplaced("red barn", 13) == (
        "answer 2: 'red barn' is not at 13 of the context, where 'ed barn.' is; it occurs once, at "
        "12: set 'answer_start' to that"
    )
    assert misplaced("barn", 0).endswith("several times, first at 16: correct 'answer_start'")
    assert misplaced("Red barn", 12).endswith("where 'red barn' is; the context does not hold it")
    for start in (-44, len(CONTEXT), 10**400):
        assert "'answer_start' must be in the context, 0 to 55; it" in misplaced("red barn", start)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": None}, "no key 'question'"),
        ({"answers": None}, "no key 'answers'"),
        ({"answers": None, "answer": []}, "no key 'answers'; did you mean 'answer'?"),
        ({"id": None}, "no key 'id'"),
        ({"id": True}, "'id' must be text. Received: true or false"),
        ({"id": " "}, "'id' is empty"),
        ({"question": 5}, "'question' must be text. Received: a whole number"),
        ({"question": " \n"}, "'question' is empty; fill it or drop the row"),
        ({"question": "a" * 600_000}, "'question' has 600,000 characters; at most 524,288"),
        ({"question": "\ud800"}, "'question' holds a lone surrogate"),
        ({"answers": "red"}, "'answers' must be a list. Received: text"),
        ({"answers": ["red"]}, "answer 1: must be an object with 'text'. Received: text"),
        ({"answers": [{"text": "red"}]}, "answer 1: no key 'answer_start'"),
        ({"answers": [{"text": "", "answer_start": 0}]}, "answer 1: 'text' is empty"),
        (
            {"answers": [{"text": "Z", "answer_start": 0.0}]},
            "must be a whole number. Received: a n",
        ),
        ({"answers": {"text": ["Z"], "answer_start": []}}, "Received: 1 texts and 0 starts"),
        ({"answers": {"text": ["Z"]}}, "no key 'answer_start'"),
        ({"is_impossible": True}, "'is_impossible' is true, but the question has 2 answers"),
        ({"is_impossible": False, "answers": []}, "is false, but the question has 0 answers"),
        ({"is_impossible": "no"}, "'is_impossible' must be true or false. Received: text"),
    ],
)
def test_a_mistake_is_named(tmp_path, changes, message):
    assert message in reason(tmp_path, **changes)


@pytest.mark.parametrize("context", [None, "", "\udfff", ["a"]])
def test_a_bad_context_counts_its_questions(tmp_path, context):
    (row,) = read(tmp_path, document(ANSWERABLE, UNANSWERABLE, context=context))
    assert row.place == f"{tmp_path}/t.json:1/1" and row.count == 2 and "'context'" in row.reason


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ({"data": [5]}, "1"),
        ({"data": [{"paragraphs": {}}]}, "1"),
        ({"data": [{"title": "a"}]}, "1"),
        ({"data": [{"paragraphs": ["a"]}]}, "1/1"),
        ({"data": [{"paragraphs": [{"context": "a"}]}]}, "1/1"),
        ({"data": [{"paragraphs": [{"context": "a", "qas": [None]}]}]}, "1/1/1"),
    ],
)
def test_a_bad_article_or_paragraph_is_a_bad_row(tmp_path, content, place):
    (row,) = read(tmp_path, content)
    assert isinstance(row, BadRow) and row.place == f"{tmp_path}/t.json:{place}"


def test_ids_are_unique_in_a_file(tmp_path):
    first, second = read(tmp_path, document(ANSWERABLE, ANSWERABLE))
    assert isinstance(first, Question) and second.place.endswith(":1/1/2")
    assert second.reason == f"the id 'q1' is also that of {first.place}; ids are unique"
    # Translations of a data set have the same ids.
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(json.dumps(document(ANSWERABLE)))
    source = Source(source="jsonl", path=str(tmp_path / "[ab].json"))
    assert [type(r) for r in squad.read(source, "data.train")] == [Question] * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "must hold an object with a list `data`, as SQuAD does. Received: a list"),
        ('{"rows": []}', "Received: the keys 'rows'"),
        ('{"data": {}}', "Received: data: an object"),
        ('{"a": 1}\n{"a": 2}', r"not valid JSON \(Extra data\); name a file .* \.jsonl"),
        ('{"data": ' + "[" * 100_000, "nested too deep"),
        ('{"data": [], "data": []}', "an object has a key twice"),
    ],
)
def test_another_json_file_is_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=rf"^{tmp_path}/t\.json: .*{message}"):
        read(tmp_path, content)


def test_a_file_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tfft.data.squad._LARGEST_FILE", 100)
    with pytest.raises(UserError, match="at most 100 are read"):
        read(tmp_path, document(ANSWERABLE))


@pytest.mark.parametrize("examples", EXAMPLES)
def test_almost_valid_files(tmp_path, examples):
    valid = document(ANSWERABLE, UNANSWERABLE)
    path = tmp_path / "t.json"

    def check(content):
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        try:
            for row in squad.read(Source(source="jsonl", path=str(path)), "data.train"):
                assert isinstance(row, Question | BadRow) and row.place.startswith(f"{path}:")
                if isinstance(row, BadRow):
                    assert row.reason.isprintable() and len(row.reason) < 2000
        except UserError as error:
            assert str(error).isprintable() and str(error).startswith(str(path))

    fuzz(st.composite(lambda draw: replaced(draw, valid))(), check, examples)
    fuzz(mutated([json.dumps(valid).encode()]), check, examples)


@pytest.mark.parametrize("language", ["de", "en", "zh"])
def test_xquad(real_data, language):
    """Read XQuAD (Artetxe et al. 2020): 240 paragraphs, 1,190 questions with an answer each."""
    path = real_data / "xquad" / f"xquad.{language}.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    rows = list(squad.read(Source(source="jsonl", path=str(path)), "data.train"))
    assert {type(row) for row in rows} == {Question} and len(rows) == 1190
    assert len({row.context for row in rows}) == 240
    assert all(len(row.answers) == 1 for row in rows)
