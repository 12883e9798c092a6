"""What `tfft init` refuses, doubts or must quote: mistakes, bad rows, unusual names."""

import json

import numpy as np
import pytest

from tests.cli.init_command import init, png, refused, texts, write_images, write_table
from tests.conftest import write_csv
from tests.console import run_command
from tfft.config import Fraction

pytestmark = pytest.mark.usefixtures("folder")


WRONG = {
    "no data": ((), "--data: required and not given"),
    "no such file": (
        ("--data=good.cvs.csv",),
        "no such file: good.cvs.csv; did you mean 'good.csv'?",
    ),
    "format": (("--data=plain.bin",), "cannot tell the format of plain.bin from its name"),
    "folder": (("--data=folders/a",), "holds no folder; each class needs a folder"),
    "output": (("--data=good.csv", "--output=good.csv"), "good.csv exists and is not overwritten"),
    "backbone": (
        ("--data=good.csv", "--backbone=x"),
        "--backbone: backbone: must be PROVIDER:NAME",
    ),
    "number": (("--data=good.csv", "--label=7"), "good.csv: no column 7: the row has 2 (0 to 1)"),
    "column": (("--data=good.csv", "--label=lable"), "did you mean 'label'?"),
    "same column": (("--data=good.csv", "--text=label", "--label=label"), "must be different"),
    "one column": (("--data=one.csv",), "a single column; commas must separate the columns"),
    "scores": (("--data=scores.csv",), "column 'second' holds decimal fractions, not classes"),
    "no label": (("--data=unique.csv",), "among 'text', 'id': none holds short values that repeat"),
    "one class": (("--data=class.csv",), "column 'label' holds one class alone"),
    "no text": (
        ("--data=numbers.csv",),
        "no text column can be identified among 'a', 'b', 'label'",
    ),
    "bad rows": (("--data=bad.csv",), "bad.csv:2: 1 columns where 2 are expected"),
    "one folder": (
        ("--data=folders",),
        "at least two classes are needed; column 'label' holds 'a'",
    ),
    "float pixels": (("--data=float.npz",), "no array holds pixels, uint8 [N, H, W]"),
    "empty table": (("--data=empty.csv",), "empty.csv: empty; needs at least one row"),
    "encoding": (("--data=latin.csv",), "latin.csv:2: byte 0xe9 is not utf-8"),
    "test": (("--data=good.csv", "--test=none.csv"), "no such file: none.csv"),
    "empty": (("--data=",), "--data: must not be empty"),
    "empty test": (("--data=good.csv", "--test="), "--test: must not be empty"),
    "pair": (("--data=good.csv", "--text_pair=text"), "--text_pair: needs --text"),
    "two inputs": (
        ("--data=good.csv", "--text=text", "--image=text"),
        "--text: cannot be given with --image",
    ),
    "booleans": (("--data=booleans.jsonl",), "'toxic' is bool; text or a number is expected"),
    "boolean label": (
        ("--data=booleans.jsonl", "--label=toxic"),
        "holds none: 'toxic' is bool; text or a number is expected",
    ),
    "identifiers": (("--data=users.csv",), "column 'user_id' is named as an identifier"),
    "quotes": (("--data=quotes.csv",), "quotes.csv:3: "),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_one_line(folder, name):
    write_csv(folder / "good.csv", 40)
    (folder / "plain.bin").write_text("a")
    (folder / "empty.csv").write_text("")
    np.savez(folder / "float.npz", x=np.zeros((4, 8, 8)), y=np.arange(4) % 2)
    (folder / "bad.csv").write_text("text,label\na\n")
    (folder / "folders" / "a").mkdir(parents=True)
    (folder / "folders" / "a" / "1.png").write_bytes(png())
    (folder / "one.csv").write_text("text;label\n" + "a text;b\n" * 9)
    (folder / "latin.csv").write_bytes(b"text,label\ncaf\xe9 noir,a\n")
    numbered = list(enumerate(texts(40)))
    rows = [(text, f"{n}.5", f"{n}.25") for n, (text, _) in numbered]
    write_table(folder / "scores.csv", ("text", "first", "second"), rows)
    write_table(folder / "unique.csv", ("text", "id"), [(t, str(n)) for n, (t, _) in numbered])
    write_table(folder / "class.csv", ("text", "label"), [(t, "a") for t, _ in texts(40)])
    write_table(
        folder / "numbers.csv", ("a", "b", "label"), [(str(n), str(n), c) for n, (_, c) in numbered]
    )
    (folder / "booleans.jsonl").write_text(
        "".join(json.dumps({"text": t, "toxic": n % 2 == 0}) + "\n" for n, (t, _) in numbered)
    )
    users = [(t, str(n % 4)) for n, (t, _) in numbered]
    write_table(folder / "users.csv", ("text", "user_id"), users)
    (folder / "quotes.csv").write_text('\n\n"a"b,c\n')
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    arguments, expected = WRONG[name]
    refused(expected, *arguments)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_splits_that_do_not_fit_are_named(folder):
    write_csv(folder / "train.csv", 40)
    (folder / "test.csv").write_text("text\nthe sky\n")
    (folder / "dev.csv").write_text("text,label\nthe sky,black\n")
    config, text, _, err = init("--data=train.csv")
    assert isinstance(config.data.validation, Fraction) and config.data.test is None
    assert "check test: test.csv is not used: it has no column 'label'" in err
    assert "its label 'black' is not a class" in err and "# CHECK: test.csv is not used" in text
    refused(
        "--test: test.csv: it has no column 'label'",
        "--data=train.csv",
        "--test=test.csv",
        "--output=2.yaml",
    )


def test_undecided_columns_are_named_and_flags_decide(folder):
    rows = [
        (text, f"{text} and more", color, "ab"[n % 2]) for n, (text, color) in enumerate(texts(40))
    ]
    write_table(folder / "t.csv", ("subject", "words", "color", "side"), rows)
    config, text, _, err = init("--data=t.csv")
    assert (config.data.text, config.data.label) == ("words", "side")
    assert "check text: 'subject' could be the text too" in err
    assert "check label: 'color' could be the label too" in err and text.count("CHECK: ") == 3
    config, _, _, err = init(
        "--data=t.csv", "--output=2.yaml", "--text=subject", "--label=color", "--text_pair=words"
    )
    assert (config.data.text, config.data.text_pair) == ("subject", "words")
    assert config.data.label == "color" and not err
    refused(
        "no column 'colr' in the header; did you mean 'color'?",
        "--data=t.csv",
        "--label=colr",
        "--output=3",
    )


def test_booleans_beside_another_label_are_named(folder):
    rows = [{"text": t, "toxic": n % 2 == 0, "color": c} for n, (t, c) in enumerate(texts(40))]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config, _, _, err = init("--data=t.jsonl")
    assert config.data.label == "color" and "'toxic' is no candidate: 'toxic' is bool" in err


def test_bad_rows_are_skipped_and_named(folder, tiny):
    write_csv(folder / "t.csv", 60)
    with open(folder / "t.csv", "a") as file:
        file.write("a,b,c\n,red\n")
    config, text, _, err = init("--data=t.csv", f"--backbone=hf:{tiny}")
    assert config.data.on_bad_row == "skip" and "2 of the first rows cannot be used" in err
    assert "t.csv:62: 3 columns where 2 are expected" in " ".join(text.replace("# ", "").split())


def test_lone_surrogates_are_refused(folder):
    rows = [{"text": text, "label\ud800": color} for text, color in texts(40)]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused("lone surrogate", "--data=t.jsonl")
    refused("not UTF-8, which a YAML file cannot name", "--data=\udcff.csv")


NAMES = ["a: b", "#no", "line\nbreak", "- x", "\u2028", "\x07", "1", "null", "caf\xe9", "{", '"']


@pytest.mark.parametrize("name", NAMES)
def test_names_are_data(folder, name):
    table = {
        name: [text for text, _ in texts(40)],
        f"{name}y": [f"{name} {c}" for _, c in texts(40)],
    }
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config, *_ = init("--data=t.jsonl")
    assert (config.data.text, config.data.label) == (name, f"{name}y")


@pytest.mark.parametrize(
    "name", ["a b.csv", "a: b.csv", "#a.csv", "a\nb.csv", "a'b.csv", "\x07.csv"]
)
def test_paths_are_data(folder, name):
    write_csv(folder / name, 40)
    config, *_ = init(f"--data={name}", "--output=c.yaml")
    assert config.data.train.path == name
    other = folder / "it's.yaml"
    _, out, _ = run_command("init", f"--data={name}", f"--output={other.name}")
    assert """--config='it'"'"'s.yaml'""" in out


def test_long_labels_are_cut(folder):
    write_csv(folder / "train.csv", 40)
    (folder / "test.csv").write_text("text,label\nthe sky," + "x" * 5_000 + "\n")
    _, text, *_ = init("--data=train.csv")
    assert "is not a class of the training rows" in " ".join(text.replace("# ", "").split())


@pytest.mark.parametrize("kind", ["table", "folder"])
def test_names_as_long_as_a_file_system_allows(folder, kind):
    if kind == "table":
        name = "x" * 251 + ".csv"
        write_csv(folder / name, 40)
    else:
        name = "train-" + "x" * 249
        write_images(folder / name)
    config, *_ = init(f"--data={name}", "--output=c.yaml")
    assert config.data.test is None


def test_output_is_quoted_and_printable(folder):
    write_csv(folder / "t.csv", 40)
    init_out = run_command("init", "--data=t.csv", "--output=a b.yaml")
    assert init_out[0] == 0 and "--config='a b.yaml'" in (folder / "a b.yaml").read_text()
    code, out, _ = run_command("init", "--data=t.csv", "--output=\udcff.yaml")
    assert code == 0 and out.encode() and r"\udcff.yaml: text_classification" in out
