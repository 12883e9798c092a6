"""`tfft init` on data of each format: the columns, splits and classes that its config names.

That written configs train unchanged is shown in `test_init_trains`.
"""

import json
import re
import subprocess
import sys
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cli.init_command import (
    COLORS,
    init,
    refused,
    tagged_sentences,
    texts,
    write_conll,
    write_images,
    write_table,
)
from tests.conftest import GOLDEN, write_csv
from tests.console import run_command
from tfft.config import Fraction
from tfft.data import array_files
from tfft.data.records import Row
from tfft.starter import choices, head, request
from tfft.utils import tensorflow_setup

pytestmark = pytest.mark.usefixtures("folder")


def test_csv_with_header_trains(folder, tiny):
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
    # Shortened: test_init_trains trains such configs as they are.
    quick = ("--set=train.epochs=1", "--set=export.enabled=false")
    code, _, err = run_command("train", "--config=reviews.yaml", "--workdir=run", *quick)
    assert code == 0, err


def test_csv_without_header(folder, tiny):
    write_csv(folder / "t.csv", 60, header="")
    config, text, *_ = init("--data=t.csv", "--output=c.yaml", f"--backbone=hf:{tiny}")
    assert (config.data.text, config.data.label) == (0, 1)
    assert "no header: columns by number, from 0" in text


def test_tsv(folder):
    write_table(folder / "t.tsv", ("sentence", "label"), texts(40), "\t")
    config, *_ = init("--data=t.tsv")
    assert config.data.train.source == "tsv"
    assert (config.data.text, config.data.label) == ("sentence", "label")
    assert config.model.backbone == choices.ENGLISH


def test_pairs_of_jsonl(folder, tiny):
    rows = [
        {"hypothesis": f"{color} sky {n}", "premise": text, "gold_label": color, "note": None}
        for n, (text, color) in enumerate(texts(60))
    ]
    (folder / "nli.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config, *_ = init("--data=nli.jsonl", f"--backbone=hf:{tiny}")
    assert (config.data.text, config.data.text_pair) == ("premise", "hypothesis")
    assert config.data.label == "gold_label"


@pytest.mark.parametrize("separator", ["|", ";", ","])
def test_label_separators(folder, tiny, separator):
    tags = (f"sky{separator}red", "red", f"grass{separator}sky{separator}red", "grass")
    rows = [(text, tags[n % 4]) for n, (text, _) in enumerate(texts(60))]
    write_table(folder / "t.csv", ("text", "tags"), rows)
    config, text, *_ = init("--data=t.csv", f"--backbone=hf:{tiny}")
    assert config.task.name == "text_multilabel" and config.data.label_separator == separator
    assert "3 classes: red 45, sky 30, grass 30" in text


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


def test_folder_of_images(folder):
    write_images(folder / "flowers" / "train")
    write_images(folder / "flowers" / "test")
    config, text, *_ = init("--data=flowers")
    assert config.data.train.path == "flowers/train/" and config.data.test.path == "flowers/test/"
    assert config.task.name == "image_classification"
    assert config.model.backbone == choices.IMAGES and "blue 5, green 5, red 5" in text
    config, *_ = init("--data=flowers/train/", f"--backbone=hf:{GOLDEN / 'vision' / 'vit'}")
    assert config.data.test.path == "flowers/test/" and config.model.image_size is None


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


@pytest.mark.parametrize("part", ["colors", "colors/1.0.0"])
def test_prepared_tfds_folder(prepared, tiny, part):
    config, text, *_ = init(f"--data={prepared / part}", "--output=c.yaml", f"--backbone=hf:{tiny}")
    source = config.data.train
    assert (source.source, source.path, source.data_dir) == ("tfds", "colors:1.0.0", str(prepared))
    assert config.data.test.split == "test" and "3 classes: " in text


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
        "heavy = {'tensorflow', 'keras', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "print('CODE', code, sorted(heavy))\n"
    )
    write_conll(folder / "t.conll", tagged_sentences(40))
    for name in ("t.csv", "images", "a.npz", "t.conll"):
        process = [sys.executable, "-c", code, f"--data={name}", f"--output={name}.yaml"]
        done = subprocess.run(process, capture_output=True, text=True, check=False)
        assert "CODE 0 []" in done.stdout, done.stdout + done.stderr


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


def test_tensorflow_is_loaded_quietly_for_the_test_split(folder, monkeypatch):
    write_csv(folder / "t.csv", 40)
    loaded = []
    monkeypatch.setattr(tensorflow_setup, "load_tensorflow", lambda: loaded.append(1))
    refused("no set of TFDS", "--data=t.csv", "--test=tfds:no set/of/tfds")
    assert loaded


NUMBER_TABLES = {
    "decimals": (("text", "score"), lambda n, c: (f"{n % 17}.5",), "score"),
    "whole numbers": (("text", "price"), lambda n, c: (str(20 + 7 * n),), "price"),
    "named": (("text", "length", "rating"), lambda n, c: (f"{n}.5", f"{n % 13}.25"), "rating"),
}


@pytest.mark.parametrize("name", NUMBER_TABLES)
def test_numbers_to_predict(folder, name):
    header, cells, label = NUMBER_TABLES[name]
    rows = [(text, *cells(n, color)) for n, (text, color) in enumerate(texts(60))]
    write_table(folder / "t.csv", header, rows[:40])
    # Whole numbers in another split are numbers too, and a bad cell is the reader's business.
    whole = [(row[0], *["4"] * (len(row) - 1)) for row in rows[40:]]
    write_table(folder / "test.csv", header, [*whole, (rows[0][0], *["NA"] * (len(header) - 1))])
    config, text, out, _ = init("--data=t.csv", "--test=test.csv")
    assert config.task.name == "text_regression" and config.data.label == label
    assert "numbers from " in text and config.data.on_bad_row == "skip"
    assert out.startswith(f"t.yaml: text_regression of 'text' by '{label}'")


CLASS_TABLES = {
    "department": lambda n, c: (c, f"{n % 19}.5"),
    "stance": lambda n, c: (c, str(n)),
    "label": lambda n, c: (c, f"{n}.25"),
}


@pytest.mark.parametrize("name", CLASS_TABLES)
def test_classes_are_preferred_to_numbers(folder, name):
    rows = [(text, *CLASS_TABLES[name](n, color)) for n, (text, color) in enumerate(texts(60))]
    write_table(folder / "t.csv", ("text", name, "score"), rows)
    config, *_ = init("--data=t.csv")
    assert config.task.name == "text_classification" and config.data.label == name


def test_few_numbers_are_not_predicted(folder):
    versions = [(text, f"1.{n % 3 + 1}") for n, (text, _) in enumerate(texts(40))]
    write_table(folder / "t.csv", ("text", "type"), versions)
    refused("column 'type' holds decimal fractions, not classes", "--data=t.csv")
