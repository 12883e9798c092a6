"""`tfft init` on data of each format: what it detects, and that its config is read and trains."""

import json
import re
import subprocess
import sys
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from tests.conftest import GOLDEN, WORDS, write_csv
from tests.console import run_command
from tfft.config import Fraction, load, parse
from tfft.data import array_files
from tfft.data.records import Row
from tfft.methods import auto
from tfft.starter import choices, head, header, labels, names, page, request
from tfft.utils import tensorflow_setup

COLORS = ("red", "green", "blue")
PNG = tf.io.encode_png(np.full((24, 24, 3), 90, np.uint8)).numpy()


def texts(count, seed=0):
    """Return texts of different words, each with its colour."""
    generator = np.random.default_rng(seed)
    colors = generator.choice(COLORS, count)
    words = (" ".join(generator.choice(WORDS[3:], 6)) for _ in range(count))
    return [
        (f"{line} {color} {n}", str(color))
        for n, (line, color) in enumerate(zip(words, colors, strict=True))
    ]


def write_table(path, header, rows, separator=","):
    lines = [separator.join(header)] if header else []
    lines += [separator.join(f'"{c}"' if "," in c else c for c in row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def init(*arguments):
    """Run the command and return the config that it wrote, the text of it, and both outputs."""
    code, out, err = run_command("init", *arguments)
    assert code == 0, err
    output = out.partition(": ")[0]
    with open(output, encoding="utf-8") as file:
        text = file.read()
    assert all(len(line) <= 100 or line.lstrip()[0] != "#" for line in text.splitlines())
    assert len(text.splitlines()) <= 60  # one page
    assert f"tfft train --config={output}" in out
    return load(output), text, out, err


def refused(expected, *arguments):
    code, out, err = run_command("init", *arguments)
    assert code == 2 and not out, err
    assert len(err.splitlines()) == 1 and expected in err, err


def train(path, *settings):
    overrides = [f"--set={s}" for s in ("train.epochs=1", "export.enabled=false", *settings)]
    code, _, err = run_command("train", f"--config={path}", "--workdir=run", *overrides)
    assert code == 0, err


def test_csv_with_header_trains_unchanged(folder, tiny):
    rows = [(str(n), text, color) for n, (text, color) in enumerate(texts(60))]
    write_table(folder / "reviews.csv", ("id", "review", "colour"), rows)
    config, text, out, err = init("--data=reviews.csv", f"--backbone=hf:{tiny}")
    assert (config.data.train.path, config.data.text, config.data.label) == (
        "reviews.csv",
        "review",
        "colour",
    )
    assert config.data.validation == Fraction(fraction=0.2) and config.data.test is None
    assert config.method.name == "auto" and config.data.max_length == 16
    assert "3 classes: " in text and "with a header" in text and not err
    assert out.startswith("reviews.yaml: text_classification of 'review' by 'colour', 60 rows\n")
    train("reviews.yaml")


def test_csv_without_header_trains_unchanged(folder, tiny):
    write_csv(folder / "t.csv", 60, header="")
    config, text, *_ = init("--data=t.csv", "--output=c.yaml", f"--backbone=hf:{tiny}")
    assert (config.data.text, config.data.label) == (0, 1)
    assert "no header: columns by number, from 0" in text
    train("c.yaml")


def test_tsv(folder):
    write_table(folder / "t.tsv", ("sentence", "label"), texts(40), "\t")
    config, *_ = init("--data=t.tsv")
    assert config.data.train.source == "tsv"
    assert (config.data.text, config.data.label) == ("sentence", "label")
    assert config.model.backbone == choices.ENGLISH


def test_pairs_of_jsonl_train_unchanged(folder, tiny):
    rows = [
        {"hypothesis": f"{color} sky {n}", "premise": text, "gold_label": color, "note": None}
        for n, (text, color) in enumerate(texts(60))
    ]
    (folder / "nli.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config, *_ = init("--data=nli.jsonl", f"--backbone=hf:{tiny}")
    assert (config.data.text, config.data.text_pair) == ("premise", "hypothesis")
    assert config.data.label == "gold_label"
    train("nli.yaml")


@pytest.mark.parametrize("separator", ["|", ";", ","])
def test_multi_label_trains_unchanged(folder, tiny, separator):
    tags = (f"sky{separator}red", "red", f"grass{separator}sky{separator}red", "grass")
    rows = [(text, tags[n % 4]) for n, (text, _) in enumerate(texts(60))]
    write_table(folder / "t.csv", ("text", "tags"), rows)
    config, text, *_ = init("--data=t.csv", f"--backbone=hf:{tiny}")
    assert config.task.name == "text_multilabel" and config.data.label_separator == separator
    assert "3 classes: red 45, sky 30, grass 30" in text
    if separator == ";":
        train("t.yaml")


def test_lists_of_labels(folder):
    rows = [{"text": text, "tags": [color, "any"]} for text, color in texts(40)]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config, text, *_ = init("--data=t.jsonl")
    assert config.task.name == "text_multilabel" and "4 classes: any 40" in text


@pytest.mark.parametrize(
    ("sample", "backbone"),
    [
        ("Der Film war überraschend schön und fröhlich, die Bäume grün", choices.MULTILINGUAL),
        ("Фильм был очень хорошим и смешным", choices.MULTILINGUAL),
        ("この映画はとても面白かったです", choices.MULTILINGUAL),
        ("这部电影非常好看我们都很喜欢", choices.CHINESE),
        ("A café, " + "but otherwise plain English prose without accents " * 9, None),
    ],
)
def test_languages(folder, sample, backbone):
    write_table(
        folder / "t.csv", ("text", "label"), [(f"{sample} {n}", "ab"[n % 2]) for n in range(40)]
    )
    config, *_ = init("--data=t.csv")
    assert config.model.backbone == (backbone or choices.ENGLISH)
    assert config.data.max_length == choices.max_length([f"{sample} 10"])


def write_images(folder):
    for color in COLORS:
        (folder / color).mkdir(parents=True)
        for number in range(5):
            (folder / color / f"{number}.png").write_bytes(PNG)


def test_folder_of_images_trains_unchanged(folder):
    write_images(folder / "flowers" / "train")
    write_images(folder / "flowers" / "test")
    config, text, *_ = init("--data=flowers")
    assert config.data.train.path == "flowers/train/" and config.data.test.path == "flowers/test/"
    assert config.task.name == "image_classification"
    assert config.model.backbone == choices.IMAGES and "blue 5, green 5, red 5" in text
    config, *_ = init("--data=flowers/train/", f"--backbone=hf:{GOLDEN / 'vision' / 'vit'}")
    assert config.data.test.path == "flowers/test/" and config.model.image_size is None
    train("train.yaml", "method.name=head", "evaluate.baselines=false", "train.soup=0")


def test_table_of_image_paths(folder):
    write_images(folder / "tables" / "images")
    rows = [(f"images/{c}/{n}.png", c) for c in COLORS for n in range(5)]
    write_table(folder / "tables" / "t.csv", ("file", "kind"), rows)
    config, _, _, err = init("--data=tables/t.csv")
    assert (config.data.image, config.data.label) == ("file", "kind")
    assert config.task.name == "image_classification" and "no such image" not in err
    (folder / "tables" / "images" / "red" / "0.png").unlink()
    config, _, _, err = init("--data=tables/t.csv", "--output=again.yaml")
    assert "tables/t.csv:2: no such image: tables/images/red/0.png" in err
    assert config.data.on_bad_row == "skip"


def test_parquet(folder):
    rows = texts(40)
    table = {"message": [text for text, _ in rows], "color": [color for _, color in rows]}
    table["pixels"] = [b"\0"] * 40
    pq.write_table(pa.table(table), folder / "t.parquet")
    config, *_ = init("--data=t.parquet")
    assert (config.data.text, config.data.label) == ("message", "color")


def test_npz(folder):
    pixels = np.zeros((30, 8, 8, 3), np.uint8)
    np.savez(folder / "digits.npz", x=pixels, y=np.arange(30) % 10)
    config, text, *_ = init("--data=digits.npz")
    assert (config.data.image, config.data.label) == ("x", "y")
    assert config.model.image_size == 96 and "10 classes: 0 3, " in text


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of a set that TFDS prepared offline."""
    import tensorflow_datasets as tfds

    class Colors(tfds.core.GeneratorBasedBuilder):
        """Texts of colours."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            label = tfds.features.ClassLabel(names=list(COLORS))
            features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "label": label})
            return self.dataset_info_from_configs(features=features)

        def _split_generators(self, _):
            return {"train": self._generate_examples(0), "test": self._generate_examples(1)}

        def _generate_examples(self, seed):
            for number, (text, color) in enumerate(texts(20, seed)):
                yield number, {"text": text, "label": color}

    folder = tmp_path_factory.mktemp("tfds")
    Colors(data_dir=folder).download_and_prepare()
    return folder


@pytest.mark.parametrize("part", ["colors", "colors/1.0.0"])
def test_prepared_tfds_folder(prepared, tiny, part):
    config, text, *_ = init(f"--data={prepared / part}", "--output=c.yaml", f"--backbone=hf:{tiny}")
    source = config.data.train
    assert (source.source, source.path, source.data_dir) == ("tfds", "colors:1.0.0", str(prepared))
    assert config.data.test.split == "test" and "3 classes: " in text
    if part == "colors":
        train("c.yaml")


def test_splits_beside_the_training_table(folder):
    for name, seed in (("train", 0), ("dev", 1), ("test", 2)):
        write_csv(folder / f"{name}.csv", 40, seed)
    config, *_ = init("--data=train.csv")
    assert config.data.validation.path == "dev.csv" and config.data.test.path == "test.csv"
    for name in ("reviews", "reviews_test", "other"):
        write_csv(folder / f"{name}.csv", 40)
    config, *_ = init("--data=reviews.csv")
    assert config.data.test.path == "reviews_test.csv"
    config, *_ = init("--data=reviews.csv", "--test=other.csv", "--output=2.yaml")
    assert config.data.test.path == "other.csv"


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


def test_bad_rows_are_skipped_and_named(folder, tiny):
    write_csv(folder / "t.csv", 60)
    with open(folder / "t.csv", "a") as file:
        file.write("a,b,c\n,red\n")
    config, text, _, err = init("--data=t.csv", f"--backbone=hf:{tiny}")
    assert config.data.on_bad_row == "skip" and "2 of the first rows cannot be used" in err
    assert "t.csv:62: 3 columns where 2 are expected" in " ".join(text.replace("# ", "").split())
    train("t.yaml")


def rows_of(text):
    """Return the estimated number of rows that the first comment names."""
    return int(re.search(r"of about\s(?:# )?([\d,]+)", text)[1].replace(",", ""))


def test_large_tables_are_read_in_part(folder):
    write_csv(folder / "t.csv", 3000)
    config, text, *_ = init("--data=t.csv")
    assert (
        2_900 < rows_of(text) < 3_100
        and "the first 2,000 of about" in text
        and "among these rows" in text
    )
    assert config.method.name == "full" and config.train.epochs == 4
    assert config.optimizer.learning_rate == 2e-4 and config.data.test == Fraction(fraction=0.1)
    lines = [f"the sky is {n} x,{'ab'[n > 2500]}" for n in range(3000)]
    (folder / "sorted.csv").write_text("\n".join(["text,label", *lines]))
    *_, err = init("--data=sorted.csv")
    assert "of one class; is the table sorted?" in err


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


def test_lone_surrogates_are_refused(folder):
    rows = [{"text": text, "label\ud800": color} for text, color in texts(40)]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused("lone surrogate", "--data=t.jsonl")
    refused("not UTF-8, which a YAML file cannot name", "--data=\udcff.csv")


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
    "scores": (("--data=scores.csv",), "column 'label' holds decimal fractions, not classes"),
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
    (folder / "folders" / "a" / "1.png").write_bytes(PNG)
    (folder / "one.csv").write_text("text;label\n" + "a text;b\n" * 9)
    (folder / "latin.csv").write_bytes(b"text,label\ncaf\xe9 noir,a\n")
    numbered = list(enumerate(texts(40)))
    write_table(folder / "scores.csv", ("text", "label"), [(t, f"{n}.5") for n, (t, _) in numbered])
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


def test_glob(folder):
    for number in range(2):
        write_csv(folder / f"part-{number}.csv", 40, number)
    config, text, *_ = init("--data=part-*.csv")
    assert config.data.train.path == "part-*.csv" and "part-*.csv: 80 rows" in text
    assert (folder / "part.yaml").is_file()


def test_few_rows(folder):
    (folder / "t.csv").write_text("text,label\nthe red sky,red\nthe grass,green\n")
    config, *_ = init("--data=t.csv")
    assert (config.data.text, config.data.label) == ("text", "label")


def test_encoding(folder):
    rows = [(f"un caf\xe9 noir tr\xe8s serr\xe9 {n}", "ab"[n % 2]) for n in range(40)]
    write_table(folder / "t.csv", ("text", "label"), rows)
    (folder / "t.csv").write_bytes((folder / "t.csv").read_text("utf-8").encode("latin-1"))
    config, *_ = init("--data=t.csv", "--encoding=latin-1")
    assert config.data.train.encoding == "latin-1"


def test_no_tensorflow_is_loaded(folder):
    write_csv(folder / "t.csv", 40)
    write_images(folder / "images")
    np.savez(folder / "a.npz", x=np.zeros((30, 8, 8, 3), np.uint8), y=np.arange(30) % 10)
    code = (
        "import sys, tfft.cli.__main__ as m\n"
        "sys.argv = ['tfft', 'init', *sys.argv[1:]]\n"
        "try: m.main()\n"
        "except SystemExit as e: code = e.code\n"
        "print('CODE', code, sorted({'tensorflow', 'keras', 'transformers'} & set(sys.modules)))\n"
    )
    for name in ("t.csv", "images", "a.npz"):
        process = [sys.executable, "-c", code, f"--data={name}"]
        done = subprocess.run(process, capture_output=True, text=True, check=False)
        assert "CODE 0 []" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("cells", "rows", "expected"),
    [
        (("text", "label"), [("a", "b")], True),
        (("", "Review"), [("0", "so good")], True),
        (("the sky", "blue"), [("a sea", "blue")], False),
        (("the sky", "3"), [("a sea", "4")], False),
        (("quite a long first text of many words", "x"), [("a", "b")], False),
        (("label", "b"), [("label", "c")], False),
        (("foo", "bar"), [("a", "b")], True),
        (("0", "1"), [("a long film", "pos"), ("so good", "neg")], True),
        (("", "0", "1"), [("0", "a long film", "1"), ("1", "so good", "0")], True),
        (("0", "1"), [("1", "0"), ("0", "1")], False),
        (("text", "spam"), [("a long film", "spam"), ("so good", "ham")], True),
        (("text", "1"), [("a long film", "2")], True),
        (("review", "2019"), [("a long film", "a")], True),
        (("what is the date", "3"), [("a sea", "4")], False),
    ],
)
def test_headers(cells, rows, expected):
    assert header.is_header(cells, rows)[0] == expected


def test_rows_that_may_be_headers_are_doubted():
    rows = [("a long film it was", "spam"), ("so good a film", "ham")]
    assert header.is_header(("words", "spam"), rows) == (False, header._DATA)
    assert header.is_header(("it was good", "spam"), rows) == (False, None)
    assert header.is_header(("text", "1"), rows) == (True, header._NAMES)


def test_commas_in_class_names_separate_nothing():
    values = ["arts, crafts", "sports", "home, garden"] * 20
    assert labels.separator(values) is None and labels.are_classes(values)
    assert not labels.are_classes([f"{n / 7:.2f}" for n in range(60)] * 2)


@pytest.mark.parametrize("sign", "|;,")
def test_separators_alone_are_no_labels(sign):
    assert labels.separator([sign] * 9) is None


@pytest.mark.parametrize(
    ("name", "other", "pair"),
    [
        ("sentence2", "sentence1", ("sentence1", "sentence2")),
        ("text_a", "text_b", ("text_a", "text_b")),
        ("hypothesis", "premise", ("premise", "hypothesis")),
        ("title", "text", None),
    ],
)
def test_pairs(name, other, pair):
    assert names.pair_of(name, [other]) == pair


@pytest.mark.parametrize("rows", [1_000, 19_999, 20_000, 499_999, 500_000, 2_000_000])
@pytest.mark.parametrize("backbone", [choices.ENGLISH, choices.MULTILINGUAL])
def test_training_is_that_of_the_advice(rows, backbone):
    parameters = 23e6 if backbone == choices.ENGLISH else 278e6
    facts = auto.Facts(rows, 3, 20.0, int(parameters), 6, "CPU", None, 0.01)
    raw = {"data": {"train": "t.csv"}, "model": {"backbone": backbone}, "method": {"name": "auto"}}
    advised, _ = auto.advise(parse(raw), facts)
    chosen = choices.training(rows, backbone, True)
    written = parse(
        {
            **raw,
            "method": {"name": chosen.method},
            "optimizer": chosen.optimizer,
            "train": chosen.train,
        }
    )
    assert (written.method, written.optimizer, written.train) == (
        advised.method,
        advised.optimizer,
        advised.train,
    )


@pytest.mark.parametrize("rows", [1_000, 20_000, 600_000])
def test_image_epochs_are_those_of_the_advice(rows):
    facts = auto.Facts(rows, 3, None, 2_000_000, 17, "CPU", None, 0.01)
    raw = {
        "data": {"train": "t/"},
        "model": {"backbone": choices.IMAGES},
        "task": {"name": "image_classification"},
        "method": {"name": "auto"},
    }
    advised, _ = auto.advise(parse(raw), facts)
    assert advised.train.epochs == choices.image_epochs(rows)
    assert advised.optimizer.learning_rate == choices.image_rates(True)["learning_rate"]


@pytest.mark.parametrize("backbone", choices.MILLION_PARAMETERS)
def test_rates_go_by_the_size_of_the_backbone(backbone):
    is_text = not backbone.startswith("keras:")
    rate = choices.training(5_000, backbone, is_text).optimizer["learning_rate"]
    is_small = choices.MILLION_PARAMETERS[backbone] < 50
    assert rate == ((2e-4 if is_text else 5e-4) if is_small else 3e-5)


def test_backbones_of_unknown_size_are_measured(folder, tiny):
    write_csv(folder / "t.csv", 3000)
    config, text, *_ = init("--data=t.csv", f"--backbone=hf:{tiny}")
    assert config.method.name == "auto" and "learning_rate:" not in text
    assert "depend on the size of this backbone" in " ".join(text.replace("# ", "").split())


def test_long_cells_are_read_in_part(folder, monkeypatch):
    monkeypatch.setattr(head, "CHARACTERS", 1_000)
    rows = [{"text": text, "more": text * 3, "label": color} for text, color in texts(90)]
    table = {name: [row[name] for row in rows] for name in rows[0]}
    pq.write_table(pa.table(table), folder / "t.parquet")
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("t.parquet", "t.jsonl"):
        _, text, *_ = init(f"--data={name}", "--output=" + name + ".yaml", "--text=text")
        assert "among these rows" in text and 80 < rows_of(text) < 100
        assert int(re.search(r"the first (\d+) of", text)[1]) < 20


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_rows_are_estimated_by_their_bytes(folder, end):
    rows = [
        f'"the {color} sky{end}{text}{end}{end}{n}",{color}'
        for n, (text, color) in enumerate(texts(3000))
    ]
    (folder / "t.csv").write_bytes(end.join(["text,label", *rows]).encode())
    _, text, *_ = init("--data=t.csv")
    assert 2_900 < rows_of(text) < 3_100


def test_npz_of_two_splits(folder):
    pixels = np.zeros((30, 8, 8), np.uint8)
    parts = {"x_test": pixels[:20], "y_test": np.arange(20) % 4}
    parts |= {"x_train": pixels, "y_train": np.arange(30) % 4}
    np.savez(folder / "mnist.npz", **parts)
    config, text, _, err = init("--data=mnist.npz")
    assert (config.data.image, config.data.label) == ("x_train", "y_train")
    assert "mnist.npz: 30 rows" in text and not err
    config, text, *_ = init("--data=mnist.npz", "--image=x_test", "--output=test.yaml")
    assert config.data.label == "y_test" and "mnist.npz: 20 rows" in text


def test_npz_with_arrays_that_are_no_columns(folder):
    arrays = {"x": np.zeros((30, 8, 12), np.uint8), "y": np.arange(30) % 10}
    arrays |= {"version": np.array(3), "names": np.array([{}, None], object)}
    np.savez(folder / "t.npz", **arrays)
    config, *_ = init("--data=t.npz")
    assert (config.data.image, config.data.label) == ("x", "y")
    np.save(folder / "z.npy", np.arange(30))
    with zipfile.ZipFile(folder / "t.npz", "a") as archive:
        archive.writestr("z.npy", (folder / "z.npy").read_bytes()[:-9])
    config, *_ = init("--data=t.npz", "--output=cut.yaml")
    assert config.data.label == "y"
    np.savez(folder / "none.npz", version=np.array(3))
    refused("not an npz file of plain arrays: version", "--data=none.npz")


def prepare(version, name, config=None):
    version.mkdir(parents=True)
    info = {"name": name} | ({"configName": config} if config else {})
    (version / "dataset_info.json").write_text(json.dumps(info))


def test_one_tfds_set_is_taken(folder):
    for version in ("9.0.0", "10.0.0"):
        prepare(folder / "sets" / "colors" / version, "colors")
    assert request.source_of("sets/colors").path == "colors:10.0.0"
    assert request.source_of("sets").path == "colors:10.0.0"
    prepare(folder / "sets" / "glue" / "1.0.0", "glue")
    refused("sets holds 2 sets of TFDS; give one: 'sets/colors, sets/glue'", "--data=sets")
    for config in ("sst2", "mrpc"):
        prepare(folder / "configs" / "glue" / config / "1.0.0", "glue", config)
    refused("'configs/glue/mrpc, configs/glue/sst2'", "--data=configs/glue")


def test_all_images_are_counted(folder, monkeypatch):
    (folder / "flowers").mkdir()
    classes = ["blue"] * 250_000 + ["red"]
    rows = [Row(f"{n}.png", (f"{n}.png", label)) for n, label in enumerate(classes)]
    monkeypatch.setattr(array_files, "images", lambda *_: iter(rows))
    _, text, *_ = init("--data=flowers")
    assert "flowers: 250,001 rows" in text and "2 classes: blue 250,000, red 1" in text


@pytest.mark.parametrize("name", ["label_id", "class_id"])
def test_numbered_labels(folder, name):
    rows = [(str(n), text, str(n % 3)) for n, (text, _) in enumerate(texts(40))]
    write_table(folder / "t.csv", ("id", "words", name), rows)
    config, *_ = init("--data=t.csv")
    assert config.data.label == name


def test_booleans_beside_another_label_are_named(folder):
    rows = [{"text": t, "toxic": n % 2 == 0, "color": c} for n, (t, c) in enumerate(texts(40))]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config, _, _, err = init("--data=t.jsonl")
    assert config.data.label == "color" and "'toxic' is no candidate: 'toxic' is bool" in err


def test_comments_hold_no_line_breaks():
    lines = page._comment("a\u2028b\x85c\nd\xa0e", "")
    assert lines == [r"# a\u2028b\x85c\nd\xa0e"]
    entries = [page.Entry("text", "t", "a\u2028b")]
    assert r"# a\u2028b" in page.write([], {"data": entries})


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


def test_tensorflow_is_loaded_quietly_for_the_test_split(folder, monkeypatch):
    write_csv(folder / "t.csv", 40)
    loaded = []
    monkeypatch.setattr(tensorflow_setup, "load_tensorflow", lambda: loaded.append(1))
    refused("no set of TFDS", "--data=t.csv", "--test=tfds:no set/of/tfds")
    assert loaded
