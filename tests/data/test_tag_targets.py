"""Tags of words: from the cells of a row, in any scheme, to IOB2 ids."""

import json

import numpy as np
import pytest

from tfft import preprocess
from tfft.config import parse
from tfft.data import dataset_builder, sources
from tfft.data.kinds import KINDS
from tfft.data.records import BadRow, Row
from tfft.data.tag_targets import TAGS, TaggedWords
from tfft.utils.errors import UserError

TEXT = "Anna lives in New York."


def read(*cells):
    return TAGS.read(Row("rows.jsonl:1", cells), ("words", "answer"))


def test_tokens_are_joined_by_spaces():
    row = read(["Zoë", "in", "Köln"], ["B-PER", "O", "B-LOC"])
    assert row.values == ("Zoë in Köln", TaggedWords([0, 5, 8], ["B-PER", "O", "B-LOC"]))


@pytest.mark.parametrize(
    "cell",
    [
        [{"start": 0, "end": 4, "label": "PER"}, {"start": 14, "end": 22, "type": "LOC"}],
        [[14, 22, "LOC"], [0, 4, "PER"]],
        # Annotators select the white space at the ends by mistake.
        [(0, 5, "PER"), (13, 22, "LOC")],
    ],
)
def test_spans_are_tags_of_words(cell):
    text, words = read(TEXT, cell).values
    assert text == TEXT and words.starts == [0, 5, 11, 14, 18, 22]
    assert words.tags == ["B-PER", "O", "O", "B-LOC", "I-LOC", "O"]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ((["a"], ["O", "O"]), "column 'answer' holds 2 tags for 1 tokens"),
        ((["a", " "], ["O", "O"]), "column 'words' holds an empty token, number 2"),
        (([], []), "column 'words' is empty; fill it or drop the row"),
        ((["a"], "O"), "column 'answer' must be a list of tags, as the tokens are. Received: 'O'"),
        ((["a"], [None]), "column 'answer' must hold texts or numbers. Received: None"),
        ((["a"], [""]), "column 'answer' holds an empty tag; write O"),
        ((["a", 5], ["O", "O"]), "column 'words' must hold texts. Received: 5, token 2"),
        ((["\ud800"], ["O"]), "column 'words' holds a lone surrogate"),
        ((["a"], ["B-\ud800"]), "column 'answer' holds a lone surrogate"),
        (("a\ud800", []), "column 'words' holds a lone surrogate"),
        (("a", [[0, 1, "\ud800"]]), "column 'answer' holds a lone surrogate"),
        (("a" * 600_000, []), "column 'words' has 600,000 characters"),
        (({"a": 1}, ["O"]), "column 'words' must be a text or a list of tokens"),
        ((TEXT, "PER"), "column 'answer' must be a list of entities, such as"),
        ((TEXT, [[0, 4]]), "must hold entities with start, end"),
        ((TEXT, [["0", 4, "PER"]]), "must hold entities with start, end"),
        ((TEXT, [[0, 99, "PER"]]), "is not usable: entity PER [0, 99) is empty or out of range"),
        ((TEXT, [[3, 3, "PER"]]), "is not usable: entity PER [3, 3) is empty"),
        ((TEXT, [[4, 5, "PER"]]), "is not usable: entity PER [4, 5) holds only white space"),
        ((TEXT, [[0, 3, "PER"]]), "is not usable: entity 'Ann' does not begin and end with"),
        ((TEXT, [[0, 10, "A"], [5, 13, "B"]]), "is not usable: entities overlap"),
    ],
)
def test_unusable_cells_are_named(cells, message):
    row = read(*cells)
    assert isinstance(row, BadRow) and message in row.reason, row


def test_other_kinds_refuse_lists(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": [["x"]]}\n{"text": {"a": 1}, "label": "x"}\n')
    config = parse({"model": {"backbone": "hf:x"}, "data": {"train": str(path)}}).data
    rows = list(sources.read(config.train, ("text", "label"), "data.train", KINDS["class"](config)))
    assert [row.reason for row in rows] == [
        "'label' is list; text or a number is expected",
        "'text' is dict; text or a number is expected",
    ]


@pytest.fixture
def build(tiny, tmp_path, monkeypatch):
    """Return a function: tags of each row -> the training split and the names of the tags."""
    monkeypatch.setenv("TFFT_CACHE", str(tmp_path / "cache"))

    def build_rows(*rows, **data):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        lines = [{"text": [f"w{i}" for i in range(len(row))], "label": row} for row in rows]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        config = parse(
            {
                "task": {"name": "token_classification"},
                "model": {"backbone": f"hf:{tiny}"},
                "data": {"train": str(path), "validation": None, **data},
            }
        )
        inputs = preprocess.load(config.model, config.data, config.task)
        settings = dataset_builder.DatasetSettings.of(config)
        return dataset_builder.build(config.data, inputs, settings)

    return build_rows


def tags_of(data):
    return [[data.labels[i] for i in row] for row in data.train.targets]


@pytest.mark.parametrize(
    "rows",
    [
        [["B-A", "I-A", "O", "B-B"], ["B-A", "B-A"]],
        [["I-A", "I-A", "O", "I-B"], ["I-A", "B-A"]],  # IOB1
        [["B-A", "E-A", "O", "S-B"], ["S-A", "S-A"]],
        [["B-A", "L-A", "O", "U-B"], ["U-A", "U-A"]],
    ],
)
def test_all_schemes_become_iob2(build, rows):
    data = build(*rows)
    assert data.labels == ("O", "B-A", "I-A", "B-B", "I-B")
    assert tags_of(data) == [["B-A", "I-A", "O", "B-B"], ["B-A", "B-A"]]


def test_plain_types_continue_their_entity(build):
    assert tags_of(build(["A", "A", "O", "B"])) == [["B-A", "I-A", "O", "B-B"]]


def test_malformed_entities_begin_anew(build):
    data = build(["O", "I-A", "I-B", "B-B", "I-B"], ["B-A", "I-A"], ["B-B"])
    assert tags_of(data)[0] == ["O", "B-A", "B-B", "B-B", "I-B"]


def test_an_entity_ends_with_its_row(build):
    assert tags_of(build(["B-A"], ["I-A"])) == [["B-A"], ["B-A"]]


def test_numbers_are_indices_into_the_configured_names(build):
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    data = build([0, 3, 4], [1, 0, 0], labels=names)
    assert tags_of(data) == [["O", "B-LOC", "I-LOC"], ["B-PER", "O", "O"]]
    assert data.train.summary(data.labels) == {"LOC": 1, "PER": 1}


def test_numbers_need_names(build):
    with pytest.raises(UserError, match=r"the tags are numbers; data\.labels must name them"):
        build([0, 3, 4])
    with pytest.raises(UserError, match=r"jsonl:2: tag 9 has no name: data\.labels has 3 of them"):
        build([0, 1], [9], labels=["O", "B-A", "I-A"])


@pytest.mark.parametrize("labels", [["O", "A", "C"], ["O", "S-A", "S-C"], ["O", "B-C", "I-C"]])
def test_configured_types_are_added(build, labels):
    data = build(["B-A", "O"], labels=labels)
    assert data.labels == ("O", "B-A", "I-A", "B-C", "I-C")
    assert tags_of(data) == [["B-A", "O"]]


def test_schemes_must_not_be_mixed(build):
    with pytest.raises(UserError, match=r"U-A \(.*\.jsonl:2\)"):
        build(["B-A", "I-A"], ["U-A", "M-A"])


def test_there_must_be_entities(build):
    with pytest.raises(UserError, match=r"data\.label: no entity in the training rows"):
        build(["O", "O"])


def test_rows_are_grouped_by_their_rarest_type(build):
    data = build(["B-A", "B-B"], ["B-A"], ["O"], ["B-A"])
    assert data.train.kind.groups(data.train.targets).tolist() == [1, 0, -1, 0]


def test_words_and_their_tokens(build):
    data = build(["B-A", "O"])
    assert data.train.words(0) == ["w0", "w1"]
    assert data.train.text_of(0, 0, 2) == "w0 w1" and data.train.text_of(0, 1, 2) == "w1"
    words = data.train.of_tokens("token_words")[0]
    assert words[0] == words[-1] == -1 and set(words[1:-1].tolist()) == {0, 1}
    assert (np.diff(words[1:-1]) >= 0).all()
