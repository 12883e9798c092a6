"""Searches under the same wall-clock time, each with another oracle; and beside a naive loop.

TREC-6 with 500 training rows and MiniLM, the space of configs/text/trec_minilm_search.yaml. Every
search trains its best and the advisor's choice again on fresh seeds and tests them.

`--naive` trains the trials of the first search once more in a plain loop (`tfft train` for each,
from scratch, with no shared cache, all epochs) and prints the ratio.

    python benchmarks/search.py --data=trec/ --backbone=hf:FOLDER --out=FOLDER [--minutes=5]
        [--oracles=random,grid,bayesian,hyperband] [--naive]

`--out` keeps the searches: the same command goes on where it was.
"""

import argparse
import csv
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

RECIPE = Path(__file__).parents[1] / "configs" / "text" / "trec_minilm_search.yaml"
ROWS = 500


def main() -> None:
    """Search, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--oracles", default="random,grid,bayesian,hyperband")
    parser.add_argument("--naive", action="store_true")
    flags = parser.parse_args()
    out = Path(flags.out)
    out.mkdir(parents=True, exist_ok=True)
    os.environ["TFFT_CACHE"] = str(out / "cache")

    from tfft.search.pipeline import search

    table, boards = [], []
    for name in flags.oracles.split(","):
        board = search(config(flags, name, out), out / name)
        boards.append(board)
        table.append(row(name, board))
    for line in table:
        print("  ".join(cell.ljust(22) for cell in line))
    if flags.naive:
        naive(boards[0], out)


def config(flags: argparse.Namespace, oracle: str, out: Path) -> dict[str, Any]:
    """The recipe's search with another oracle, over the files at hand."""
    from tfft.config import read

    data = Path(flags.data)
    changes: dict[str, Any] = {
        "data": {"test": str(data / "test.tsv"), "text": "question", "label": "type"},
        "model": {"backbone": flags.backbone},
        "tune": {"oracle": oracle, "time": f"{flags.minutes:g} minutes"},
    }
    raw = read(RECIPE, changes=changes)
    raw["data"]["train"] = str(sample(data / "train.tsv", out))
    if oracle == "hyperband":
        raw["tune"]["halving"] = None
    if oracle == "grid":
        rates, decays = [5e-5, 2e-4, 8e-4, 3e-3], [0.8, 1.0]
        raw["optimizer"] = {
            "learning_rate": {"search": "choice", "values": rates},
            "layer_decay": {"search": "choice", "values": decays},
        }
    return raw


def sample(path: Path, folder: Path) -> Path:
    """The training rows, drawn by seed 0."""
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    random.Random(0).shuffle(rows)
    out = folder / "train.tsv"
    lines = ["\t".join(cells) for cells in (header, *rows[:ROWS])]
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return out


def row(name: str, board: Any) -> list[str]:
    """One line of the table."""
    from tfft.search.trials import interval

    def mean(figure: str, which: str) -> str:
        found = [f.scores(figure) for f in board.finals if f.name == which]
        if not found:
            return "the same"
        value, low, high = interval(found[0])
        return f"{value:.4f} ± {(high - low) / 2:.4f}" if low is not None else f"{value:.4f}"

    best = board.best()
    epochs = sum(r.outcome.epochs for r in board.rows)
    return [
        name,
        f"{len(board.rows)} trials, {epochs} ep.",
        f"validation {best.outcome.score:.4f}",
        f"test {mean('test/accuracy', 'best')}",
        f"advised {mean('test/accuracy', 'advised')}",
    ]


def naive(board: Any, out: Path) -> None:
    """Train every trial of a search from scratch, in a plain loop."""
    spent = 0.0
    folder = out / "naive"
    for at, one in enumerate(board.rows):
        path = folder / f"{at}.yaml"
        folder.mkdir(exist_ok=True)
        from tfft.config import dump

        path.write_text(dump(board.space.config(one.values)), encoding="utf-8")
        command = [sys.executable, "-m", "tfft.cli", "train", f"--config={path}"]
        command += [
            f"--workdir={folder / str(at)}",
            f"--set=data.cache_dir={folder / f'{at}.cache'}",
        ]
        command += ["--set=data.test=null", "--set=export.enabled=false"]
        began = time.monotonic()
        subprocess.run(command, check=False, stderr=subprocess.DEVNULL)
        spent += time.monotonic() - began
    print(f"naive loop: {spent:.0f} s for {len(board.rows)} trials, search {board.seconds:.0f} s: ")
    print(f"the search took {board.seconds / spent:.2f} of it")


if __name__ == "__main__":
    main()
