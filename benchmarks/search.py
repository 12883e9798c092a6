"""Compare searches with different oracles under the same time limit, and with a naive loop.

TREC-6 with 500 training rows and MiniLM, with the search space of
configs/text/trec_minilm_search.yaml. Each search trains its best config and the advised one on
fresh seeds and tests them.

`--naive` trains the trials of the first search once more in a plain loop (`tfft train` for each,
from scratch, without a shared cache, for all epochs) and prints the ratio of the times.

    python benchmarks/search.py --data=trec/ --backbone=hf:FOLDER --out=FOLDER [--minutes=5]
        [--oracles=random,grid,bayesian,hyperband] [--naive]

`--out` keeps the searches: run the same command to resume.
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
    """Run the searches and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--oracles", default="random,grid,bayesian,hyperband")
    parser.add_argument("--naive", action="store_true")
    flags = parser.parse_args()
    output_folder = Path(flags.out)
    output_folder.mkdir(parents=True, exist_ok=True)
    os.environ["TFFT_CACHE"] = str(output_folder / "cache")

    from tfft.search.pipeline import search

    table, leaderboards = [], []
    for name in flags.oracles.split(","):
        leaderboard = search(config(flags, name, output_folder), output_folder / name)
        leaderboards.append(leaderboard)
        table.append(row(name, leaderboard))
    for line in table:
        print("  ".join(cell.ljust(22) for cell in line))
    if flags.naive:
        naive(leaderboards[0], output_folder)


def config(flags: argparse.Namespace, oracle: str, output_folder: Path) -> dict[str, Any]:
    """Return the recipe's search with another oracle, on the given files."""
    from tfft.config import read

    data = Path(flags.data)
    changes: dict[str, Any] = {
        "data": {"test": str(data / "test.tsv"), "text": "question", "label": "type"},
        "model": {"backbone": flags.backbone},
        "tune": {"oracle": oracle, "time": f"{flags.minutes:g} minutes"},
    }
    raw = read(RECIPE, changes=changes)
    raw["data"]["train"] = str(sample(data / "train.tsv", output_folder))
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
    """Write the training rows, drawn with seed 0, and return their path."""
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    random.Random(0).shuffle(rows)
    output = folder / "train.tsv"
    lines = ["\t".join(cells) for cells in (header, *rows[:ROWS])]
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return output


def row(name: str, leaderboard: Any) -> list[str]:
    """Return one line of the table."""
    from tfft.search.trials import interval

    def mean(metric: str, final_name: str) -> str:
        scores = [f.scores(metric) for f in leaderboard.finals if f.name == final_name]
        if not scores:
            return "the same"
        value, low, high = interval(scores[0])
        return f"{value:.4f} ± {(high - low) / 2:.4f}" if low is not None else f"{value:.4f}"

    best = leaderboard.best()
    epochs = sum(r.outcome.epochs for r in leaderboard.rows)
    return [
        name,
        f"{len(leaderboard.rows)} trials, {epochs} ep.",
        f"validation {best.outcome.score:.4f}",
        f"test {mean('test/accuracy', 'best')}",
        f"advised {mean('test/accuracy', 'advised')}",
    ]


def naive(leaderboard: Any, output_folder: Path) -> None:
    """Train all trials of a search from scratch, in a plain loop, and print the time."""
    seconds = 0.0
    folder = output_folder / "naive"
    for index, trial in enumerate(leaderboard.rows):
        path = folder / f"{index}.yaml"
        folder.mkdir(exist_ok=True)
        from tfft.config import dump

        path.write_text(dump(leaderboard.space.config(trial.values)), encoding="utf-8")
        command = [sys.executable, "-m", "tfft.cli", "train", f"--config={path}"]
        command += [
            f"--workdir={folder / str(index)}",
            f"--set=data.cache_dir={folder / f'{index}.cache'}",
        ]
        command += ["--set=data.test=null", "--set=export.enabled=false"]
        start = time.monotonic()
        subprocess.run(command, check=False, stderr=subprocess.DEVNULL)
        seconds += time.monotonic() - start
    print(
        f"naive loop: {seconds:.0f} s for {len(leaderboard.rows)} trials, "
        f"search {leaderboard.seconds:.0f} s: "
    )
    print(f"the search took {leaderboard.seconds / seconds:.2f} of it")


if __name__ == "__main__":
    main()
