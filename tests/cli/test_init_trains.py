"""The config that `tfft init` writes trains unchanged, for data of each shape, and is served."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cli.init_command import (
    COLORS,
    init,
    questions,
    tagged_sentences,
    texts,
    with_positions,
    write_conll,
    write_jsonl,
    write_table,
)
from tests.conftest import GOLDEN, write_csv
from tests.console import run_command
from tests.tasks.test_image_runs import write_folder

pytestmark = pytest.mark.slow  # minutes: nothing is shortened; test_init trains one config quickly

ROWS = 60
VIT = GOLDEN / "vision" / "vit"


def csv_with_header(folder):
    rows = [(str(n), text, color) for n, (text, color) in enumerate(texts(ROWS))]
    write_table(folder / "reviews.csv", ("id", "review", "colour"), rows)
    return "reviews.csv"


def csv_without_header(folder):
    return write_csv(folder / "t.csv", ROWS, header="").name


def csv_with_bad_rows(folder):
    with open(write_csv(folder / "t.csv", ROWS), "a") as file:
        file.write("a,b,c\n,red\n")
    return "t.csv"


def tsv(folder):
    write_table(folder / "t.tsv", ("sentence", "label"), texts(ROWS), "\t")
    return "t.tsv"


def jsonl_of_pairs(folder):
    rows = [
        {"hypothesis": f"{color} sky {n}", "premise": text, "gold_label": color, "note": None}
        for n, (text, color) in enumerate(texts(ROWS))
    ]
    write_jsonl(folder / "nli.jsonl", rows)
    return "nli.jsonl"


def parquet(folder):
    messages, colors = map(list, zip(*texts(ROWS), strict=True))
    pq.write_table(pa.table({"message": messages, "color": colors}), folder / "t.parquet")
    return "t.parquet"


def csv_with_several_labels(folder):
    tags = ("sky;red", "red", "grass;sky;red", "grass")
    rows = [(text, tags[n % 4]) for n, (text, _) in enumerate(texts(ROWS))]
    write_table(folder / "t.csv", ("text", "tags"), rows)
    return "t.csv"


def jsonl_with_lists_of_labels(folder):
    rows = [
        {"text": text, "tags": [color, "sky"] if "sky" in text else [color]}
        for text, color in texts(ROWS)
    ]
    write_jsonl(folder / "t.jsonl", rows)
    return "t.jsonl"


def csv_with_many_classes(folder):
    rows = [(text, f"class {n % 30}") for n, (text, _) in enumerate(texts(ROWS))]
    write_table(folder / "t.csv", ("text", "label"), rows)
    return "t.csv"


def conll_of_another_name(folder):
    write_conll(folder / "t.txt", tagged_sentences(ROWS))
    return "t.txt"


def folder_of_images(folder):
    write_folder(folder / "colours" / "train", ROWS // len(COLORS), 0)
    write_folder(folder / "colours" / "test", 5, 1)
    return "colours"


def npz_of_images(folder):
    labels = np.arange(ROWS) % 3
    pixels = np.random.default_rng(0).integers(0, 50, (ROWS, 24, 24, 3), np.uint8)
    pixels[np.arange(ROWS), :, :, labels] += 150
    np.savez(folder / "colours.npz", x=pixels, y=labels)
    write_folder(folder / "colours", 1, 0)  # files to predict: requests are no arrays
    return "colours.npz"


TEXTS = (
    csv_with_header,
    csv_without_header,
    csv_with_bad_rows,
    tsv,
    jsonl_of_pairs,
    parquet,
    csv_with_several_labels,
    jsonl_with_lists_of_labels,
    csv_with_many_classes,
    conll_of_another_name,
)
IMAGES = (folder_of_images, npz_of_images)


@pytest.mark.parametrize("write", TEXTS + IMAGES, ids=lambda write: write.__name__)
def test_written_config_trains_unchanged(folder, tiny, write):
    assert_trains_unchanged(write(folder), VIT if write in IMAGES else tiny, folder)


def test_written_config_of_a_prepared_tfds_set_trains_unchanged(folder, tiny, prepared):
    assert_trains_unchanged(prepared / "colors", tiny, folder)


def assert_trains_unchanged(data, backbone, folder):
    """Run init, train, and predict with the run and with its export."""
    config, text, *_ = init(f"--data={data}", "--output=written.yaml", f"--backbone=hf:{backbone}")
    run("train", "--config=written.yaml")
    assert (folder / "written.yaml").read_text(encoding="utf-8") == text
    workdir = Path("runs") / "written"  # the default
    assert (workdir / "export" / "1" / "saved_model.pb").is_file()
    labels = json.loads((workdir / "best" / "model.json").read_text(encoding="utf-8"))["labels"]
    # tfft's names of the columns are accepted whatever the table calls them.
    row = json.dumps({"text": "a red sky", "text_pair": "red sky"})
    if config.reads == ("image",):
        row = str(next((folder / "colours").rglob("*.png")))
    for model in (f"--workdir={workdir}", f"--export={workdir / 'export'}"):
        answer = json.loads(run("predict", model, stdin=f"{row}\n"))
        if config.task.name == "token_classification":
            types = {label[2:] for label in labels[1:]}
            assert {entity["type"] for entity in answer["entities"]} <= types
            continue
        predicted = answer["labels"] if "labels" in answer else [answer["label"]]
        assert list(answer["probabilities"]) == labels and set(predicted) <= set(labels)


def test_written_config_of_questions_trains_unchanged(folder, tiny):
    rows = [
        {("query" if key == "question" else key): value for key, value in row.items()}
        for row in questions(ROWS)
    ]
    write_jsonl(folder / "train.jsonl", rows)
    backbone = with_positions(tiny, folder / "backbone", 128)
    _, text, *_ = init("--data=train.jsonl", "--output=c.yaml", f"--backbone=hf:{backbone}")
    run("train", "--config=c.yaml")
    assert (folder / "c.yaml").read_text(encoding="utf-8") == text
    row = {"question": "which color is 7?", "context": "the sky is red 7"}
    for model in ("--workdir=runs/c", "--export=runs/c/export"):
        answer = json.loads(run("predict", model, stdin=f"{json.dumps(row)}\n"))
        assert row["context"][answer["start"] : answer["end"]] == answer["answer"]


def run(*arguments, stdin=""):
    """Run a command that must succeed, and return its standard output."""
    code, out, err = run_command(*arguments, stdin=stdin)
    errors = [line for line in err.splitlines() if line.startswith(("tfft: ", "Traceback"))]
    assert code == 0 and not errors, err
    return out
