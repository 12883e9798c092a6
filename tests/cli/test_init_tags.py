"""`tfft init` on words with tags: CoNLL files of any name, lists of tokens and tags, spans."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cli.init_command import (
    entities,
    init,
    refused,
    tagged_sentences,
    texts,
    write_conll,
    write_jsonl,
)
from tests.conftest import write_csv
from tfft.config import Fraction
from tfft.starter import choices

pytestmark = pytest.mark.usefixtures("folder")

NAMES = ["O", "B-color", "I-color", "B-thing"]


def numbered_rows():
    """Return rows of tokens, numbers of parts of speech and numbers of tags."""
    return [
        {
            "id": str(n),
            "tokens": tokens,
            "pos_tags": [len(token) % 5 for token in tokens],
            "ner_tags": [NAMES.index(tag) for tag in row_tags],
        }
        for n, (tokens, row_tags) in enumerate(tagged_sentences(60))
    ]


@pytest.mark.parametrize("suffix", [".conll", ".txt", ".tsv", ".bio", ".iob2", ".annotated", ""])
def test_conll_files_of_any_name(folder, suffix):
    write_conll(folder / f"t{suffix}", tagged_sentences(60))
    config, text, out, err = init(f"--data=t{suffix}", "--output=c.yaml")
    assert (config.data.train.source, config.data.train.path) == ("conll", f"t{suffix}")
    assert (config.data.text, config.data.label) == (0, -1)
    assert config.task.name == "token_classification" and config.model.backbone == choices.ENGLISH
    assert ("source: conll" in text) == (suffix != ".conll") and "label:" not in text and not err
    assert "2 types of entities: color 60, thing " in text
    assert out.startswith("c.yaml: token_classification of 0 by -1, 60 rows\n")
    joined = [" ".join(tokens) for tokens, _ in tagged_sentences(60)]
    assert config.data.max_length == choices.max_length(joined)


def test_tables_with_other_suffixes_of_conll_stay_tables(folder):
    rows = [("sentence", "label"), *((text, "O") for text, _ in texts(20)), ("the sky", "B-sky")]
    for name in ("t.tsv", "t.txt"):
        (folder / name).write_text("".join(f"{text}\t{label}\n\n" for text, label in rows))
        config, *_ = init(f"--data={name}", f"--output={name}.yaml")
        assert config.data.train.source == "tsv" and config.task.name == "text_classification"


def test_other_columns_of_conll(folder):
    rows = tagged_sentences(60)
    columns = [
        [f"{n}\t{token}\t{tag}\tO\tx" for n, (token, tag) in enumerate(zip(*row, strict=True), 1)]
        for row in rows
    ]
    (folder / "t.conll").write_text("\n\n".join("\n".join(lines) for lines in columns))
    config, text, _, err = init("--data=t.conll")
    assert (config.data.text, config.data.label) == (1, 2) and not err
    assert "columns with tags too, from 0: 3" in " ".join(text.replace("# ", "").split())
    write_conll(folder / "four.conll", rows, "NN B-NP")
    config, *_ = init("--data=four.conll", "--label=2")
    assert (config.data.text, config.data.label) == (0, 2)
    config, *_ = init("--data=four.conll", "--label=3", "--output=last.yaml")
    assert config.data.label == -1


def test_splits_of_conll(folder):
    for name in ("eng.train", "eng.dev", "eng.test"):
        write_conll(folder / name, tagged_sentences(40))
    config, *_ = init("--data=eng.train")
    validation, test = config.data.validation, config.data.test
    assert (validation.source, validation.path) == ("conll", "eng.dev")
    assert (test.source, test.path) == ("conll", "eng.test")
    write_conll(folder / "eng.dev", [(["Ann", "sees"], ["B-person", "O"])] * 3)
    config, _, _, err = init("--data=eng.train", "--test=eng.test", "--output=2.yaml")
    assert isinstance(config.data.validation, Fraction) and "label 'person' is not a class" in err
    rows = [{"tokens": tokens, "tags": tags} for tokens, tags in tagged_sentences(40)]
    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "test.jsonl", [{"tokens": "Ann sees", "tags": "O"}] * 3)
    config, _, _, err = init("--data=train.jsonl")
    assert config.data.test is None and "test.jsonl is not used: it has no labels" in err
    write_csv(folder / "other.csv", 40, header="")
    refused("--test: other.csv: it has no", "--data=eng.train", "--test=other.csv", "--output=3")


def test_large_conll_files_are_read_in_part(folder):
    write_conll(folder / "t.conll", tagged_sentences(2_500))
    config, text, *_ = init("--data=t.conll")
    text = " ".join(text.replace("# ", "").split())
    assert "the first 2,000 of about 2," in text and "types of entities among these rows: " in text
    assert config.method.name == "full" and config.data.test == Fraction(fraction=0.1)


@pytest.mark.parametrize(
    ("text", "label"), [("tokens", "ner_tags"), ("words", "tags"), ("text", "labels")]
)
def test_lists_of_tokens_and_tags(folder, text, label):
    rows = [{"id": "1", text: tokens, label: tags} for tokens, tags in tagged_sentences(60)]
    write_jsonl(folder / "t.jsonl", rows)
    config, page, _, err = init("--data=t.jsonl")
    assert config.task.name == "token_classification" and config.data.labels is None
    assert (config.data.text, config.data.label) == (text, label) and not err
    assert "a tag for each token" in page and "types of entities: color 60" in page


def test_lists_of_uncommon_names(folder):
    rows = [{"pieces": tokens, "marks": tags} for tokens, tags in tagged_sentences(60)]
    write_jsonl(folder / "t.jsonl", rows)
    config, *_ = init("--data=t.jsonl")
    assert (config.data.text, config.data.label) == ("pieces", "marks")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_numbered_tags_without_names_are_doubted(folder, suffix):
    rows = numbered_rows()
    write_jsonl(folder / "t.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), folder / "t.parquet")
    config, text, _, err = init(f"--data=t.{suffix}")
    assert config.task.name == "token_classification" and config.data.label == "ner_tags"
    assert config.data.labels == ["O", "tag_1", "tag_2", "tag_3"]
    assert "check labels: the tags are numbers" in err and "# CHECK: the tags are numbers" in text
    config, *_ = init(f"--data=t.{suffix}", "--label=pos_tags", "--output=pos.yaml")
    assert config.task.name == "token_classification" and config.data.label == "pos_tags"


FEATURES = {
    "sequence": {"feature": {"names": NAMES, "_type": "ClassLabel"}, "_type": "Sequence"},
    "list": [{"names": NAMES, "_type": "ClassLabel"}],
}


@pytest.mark.parametrize("form", FEATURES)
def test_numbered_tags_have_the_names_of_the_file(folder, form):
    metadata = {"info": {"features": {"ner_tags": FEATURES[form], "id": {"dtype": "string"}}}}
    table = pa.Table.from_pylist(numbered_rows())
    table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pq.write_table(table, folder / "t.parquet")
    config, text, _, err = init("--data=t.parquet")
    assert config.data.labels == NAMES and not err
    assert "2 types of entities: color 60, thing " in text


@pytest.mark.parametrize("metadata", ["", "[]", '{"info": {"features": [1]}}', "{"])
def test_metadata_of_other_programs_name_nothing(folder, metadata):
    table = pa.Table.from_pylist(numbered_rows())
    pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), folder / "t.parquet")
    config, *_ = init("--data=t.parquet")
    assert config.data.labels[1] == "tag_1"


@pytest.mark.parametrize("form", ["jsonl", "parquet", "triples"])
def test_spans(folder, form):
    rows = [entities(tokens, tags) for tokens, tags in tagged_sentences(60)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "t.parquet")
    if form == "triples":
        rows = [{"text": r["text"], "label": [[*e.values()] for e in r["spans"]]} for r in rows]
    write_jsonl(folder / "t.jsonl", rows)
    config, text, _, err = init(f"--data=t.{'parquet' if form == 'parquet' else 'jsonl'}")
    assert config.task.name == "token_classification" and not err
    assert (config.data.text, config.data.label) == ("text", "label" if form[0] == "t" else "spans")
    assert "2 types of entities: color 60, thing " in text


def test_spans_beside_classes(folder):
    rows = [
        {**entities(tokens, tags), "intent": "ab"[n % 2]}
        for n, (tokens, tags) in enumerate(tagged_sentences(60))
    ]
    write_jsonl(folder / "t.jsonl", rows)
    config, _, _, err = init("--data=t.jsonl")
    assert config.data.label == "spans" and "check label: 'intent' could be the label too" in err
    config, *_ = init("--data=t.jsonl", "--label=intent", "--output=2.yaml")
    assert config.task.name == "text_classification" and config.data.label == "intent"
    write_jsonl(folder / "3.jsonl", [{**row, "label": row["intent"]} for row in rows])
    config, *_ = init("--data=3.jsonl")
    assert config.task.name == "text_classification" and config.data.label == "label"


def test_lists_of_labels_beside_a_text_are_several_labels(folder):
    rows = [
        {"text": text, "words": text.split(), "labels": [color, "any"][: n % 3]}
        for n, (text, color) in enumerate(texts(60))
    ]
    write_jsonl(folder / "t.jsonl", rows)
    config, *_ = init("--data=t.jsonl")
    assert config.task.name == "text_multilabel" and config.data.text == "text"


def test_lists_of_numbers_beside_a_text_are_several_labels(folder):
    rows = [{"text": text, "labels": [n % 3, 3]} for n, (text, _) in enumerate(texts(60))]
    write_jsonl(folder / "t.jsonl", rows)
    config, *_ = init("--data=t.jsonl")
    assert config.task.name == "text_multilabel"


def test_unusable_rows_are_skipped_and_named(folder):
    rows = [{"tokens": tokens, "tags": tags} for tokens, tags in tagged_sentences(60)]
    rows[1]["tags"] = rows[1]["tags"][1:]
    write_jsonl(folder / "t.jsonl", rows)
    config, _, _, err = init("--data=t.jsonl")
    assert config.data.on_bad_row == "skip" and "t.jsonl:2: column 'tags' holds 6 tags for 7" in err
    rows = [entities(tokens, tags) for tokens, tags in tagged_sentences(60)]
    rows[1]["spans"][0]["start"] += 1
    write_jsonl(folder / "spans.jsonl", rows)
    config, _, _, err = init("--data=spans.jsonl")
    assert config.data.on_bad_row == "skip" and "spans.jsonl:2: column 'spans' is not usable" in err


WRONG = {
    "one column": ("Ann\nsees\n\nRome\n", (), "must separate a token and its tag"),
    "no entity": ("Ann O\nsees O\n\nRome O\n", (), "no entity in column -1"),
    "two schemes": ("Ann B-PER\nsees O\n\nRome LOC\n", (), "'LOC' has no prefix"),
    "a name": ("Ann B-PER\nsees O\n", ("--label=ner",), "columns are numbers from 0"),
    "a number": ("Ann B-PER\nsees O\n", ("--label=2",), "no column 2: the row has 2 (0 to 1)"),
    "a pair": (
        "Ann NN B-PER\nsees VB O\n",
        ("--text=0", "--text_pair=1"),
        "--text_pair: rows of CoNLL files have tokens and tags alone",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_one_line(folder, name):
    text, arguments, expected = WRONG[name]
    (folder / "t.conll").write_text(text)
    refused(expected, "--data=t.conll", *arguments)


def test_first_rows_without_entities_are_doubted(folder):
    rows = [(["the", "sky"], ["O", "O"])] * 2_100
    write_conll(folder / "t.conll", [*rows, (["Ann"], ["B-person"])])
    config, _, _, err = init("--data=t.conll")
    assert config.data.label == -1 and "check label: the first 2,000 rows hold no entity" in err
