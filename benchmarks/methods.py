"""The ways of fine-tuning beside each other: TREC-6 with few and with all examples.

    python benchmarks/methods.py --data=trec/ --backbone=hf:FOLDER [--rows=full,lora] [--sizes=100]
    python benchmarks/methods.py --out=benchmarks/methods.jsonl --table   # of what is there

Each row trains in a process of its own, once for each seed; the same seed draws the same examples
for every row. There is no validation split: the last weights count. Accuracy is that of the 500
test questions, with the mean and its 95 % interval over the seeds (Student's t), and in brackets
the difference from `full` on the same examples, with its interval. Step time (median) and peak
memory are of `--cost`: 30 steps of 32 rows of 40 tokens, no cached prefix, nothing else running.
Rates are those found best on other training rows with one seed (`--sweep`).
"""

import argparse
import csv
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 8: 2.36, 10: 2.26}  # of n seeds
FULL = 1e-4
# name -> what differs from `method: full`
ROWS = {
    "head": {"method": {"name": "head"}, "optimizer": {"learning_rate": 3e-3}},
    "top 2": {"method": {"name": "top", "stages": 2}, "optimizer": {"learning_rate": 5e-4}},
    "full": {},
    "layer decay 0.8": {"optimizer": {"layer_decay": 0.8, "learning_rate": 2e-4}},
    "gradual": {"method": {"name": "gradual", "every": "10%"}},
    "lp_ft": {"method": {"name": "lp_ft", "probe_learning_rate": 3e-3}},
    "lora": {"method": {"name": "lora"}, "optimizer": {"learning_rate": 1e-3}},
    "dora": {"method": {"name": "dora"}, "optimizer": {"learning_rate": 1e-3}},
    "adapter": {"method": {"name": "adapter"}, "optimizer": {"learning_rate": 1e-3}},
    "bitfit": {"method": {"name": "bitfit"}, "optimizer": {"learning_rate": 3e-3}},
    "ia3": {"method": {"name": "ia3"}, "optimizer": {"learning_rate": 1e-2}},
    "qlora": {"method": {"name": "qlora", "bits": 4}, "optimizer": {"learning_rate": 1e-3}},
    "prefix": {"method": {"name": "prefix"}, "optimizer": {"learning_rate": 1e-2}},
    "re-init 1": {"model": {"surgery": {"reinitialize": 1}}},
    "R-Drop": {"regularization": {"r_drop": {"alpha": 1.0}}},
    "FGM": {"regularization": {"adversarial": {"name": "fgm", "epsilon": 1.0}}},
}
SWEEP = {
    "full": (5e-5, 1e-4, 2e-4, 4e-4),
    "head": (3e-3, 1e-2, 3e-2),
    "top 2": (1e-4, 2e-4, 5e-4),
    "layer decay 0.8": (1e-4, 2e-4, 4e-4),
    "lora": (1e-3, 3e-3),
    "adapter": (1e-3, 3e-3),
    "bitfit": (1e-3, 3e-3),
    "ia3": (3e-3, 1e-2, 3e-2),
}
# size -> (rows a step, epochs)
TRAIN = {100: (16, 20), 500: (16, 10), 5452: (32, 3)}


def merged(*changes: dict) -> dict:
    """Nested mappings, later ones over earlier ones; a named section is taken whole."""
    out: dict = {}
    for change in changes:
        for key, value in change.items():
            both = isinstance(value, dict) and isinstance(out.get(key), dict)
            if both and not {"name"} & set(value):
                out[key] = merged(out[key], value)
            else:
                out[key] = value
    return out


def sample(path: Path, size: int, seed: int, folder: Path, other: bool = False) -> Path:
    """`size` rows drawn by the seed; `other`: those that come after them."""
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    random.Random(seed).shuffle(rows)
    chosen = rows[size : 2 * size] if other else rows[:size]
    out = folder / f"{size}_{seed}{'_other' if other else ''}.tsv"
    lines = ["\t".join(row) for row in (header, *chosen)]
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return out


def config(flags: argparse.Namespace, size: int, seed: int, folder: Path, changes: dict) -> dict:
    """The config of one run."""
    batch, epochs = TRAIN[size]
    test = Path(flags.data) / "test.tsv"
    if flags.sweep:
        test = sample(Path(flags.data) / "train.tsv", size, seed, folder, other=True)
    plain = {
        "data": {
            "train": str(sample(Path(flags.data) / "train.tsv", size, seed, folder)),
            "validation": None,
            "test": str(test),
            "text": "question",
            "label": "type",
            "labels": ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"],
        },
        "model": {"backbone": flags.backbone},
        "optimizer": {"learning_rate": FULL},
        "train": {"epochs": epochs, "batch_size": batch, "seed": seed},
        "evaluate": {"bootstrap": 0, "baselines": False},
        "export": {"enabled": False},
    }
    return merged(plain, changes)


def child(flags: argparse.Namespace) -> None:
    """One row: every seed; a JSON line for each to standard output."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tfft
    from tfft.utils import console

    console.quiet(True)
    changes = json.loads(flags.child)
    if flags.lr:
        changes = merged(changes, {"optimizer": {"learning_rate": flags.lr}})
    size = int(flags.sizes)
    for seed in range(flags.first_seed, flags.first_seed + flags.seeds):
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            made = config(flags, size, seed, Path(folder), changes)
            if flags.cost:
                cost(made, Path(folder))
                return
            run = tfft.train(made, workdir=Path(folder) / "run")
            found = {"seed": seed, "accuracy": run.metrics["test/accuracy"]}
            print(json.dumps({**found, "seconds": round(time.monotonic() - began, 1)}), flush=True)


def cost(made: dict, folder: Path) -> None:
    """Step time, peak memory and parameters of 30 steps at a fixed shape."""
    from tfft.config import parse
    from tfft.distribute import strategies
    from tfft.model import masks
    from tfft.training import memory, memory_estimate, setup
    from tfft.training.input_pipeline import InputPipeline

    made = merged(
        made, {"train": {"batch_size": 32, "epochs": 30, "buckets": 1, "cache_features": False}}
    )
    parsed = parse(made)
    strategies.setup(parsed.distribute, 0, True)
    before = memory.resident()
    times = []

    def steps() -> None:
        result, data, plan, course = setup.prepare(parsed, folder)
        masks.set_trainable(result.model, course.mask)
        feed = InputPipeline(result, data, plan)
        function, iterator = result.model.make_train_function(), feed.after(0)
        for _ in range(30):
            began = time.perf_counter()
            function(iterator, 1)
            times.append(time.perf_counter() - began)
        total, moving = masks.parameters(course.mask)
        width = plan.buckets[-1]
        found.update(trainable=moving, total=total, width=width)
        keep.append(result)

    found: dict = {}
    keep: list = []
    peak = memory.peak_of(steps) - before
    expected = memory_estimate.process(memory_estimate.step(keep[0].model, 32, found["width"]))
    found |= {"ms": round(1000 * statistics.median(times[5:]), 1)}
    found |= {"peak_mib": round(peak / 2**20), "estimate_mib": round(expected / 2**20)}
    print(json.dumps(found), flush=True)


def run_child(flags: argparse.Namespace, name: str, size: int, lr: float | None = None) -> list:
    """What a process of its own says of a row, a mapping for each seed."""
    command = [sys.executable, __file__, f"--data={flags.data}", f"--backbone={flags.backbone}"]
    command += [f"--child={json.dumps(ROWS[name])}", f"--sizes={size}", f"--seeds={flags.seeds}"]
    command += [f"--first-seed={flags.first_seed}"]
    command += ["--cost"] * flags.cost + ["--sweep"] * flags.sweep
    command += [f"--lr={lr}"] if lr else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode:
        print(done.stderr[-1500:], file=sys.stderr)
    return lines


def interval(values: list[float]) -> float:
    """Half the width of the 95 % interval of the mean."""
    if len(values) < 2:
        return float("nan")
    nearest = max(n for n in T95 if n <= len(values))
    return T95[nearest] * statistics.stdev(values) / len(values) ** 0.5


def table(path: Path) -> str:
    """The results as Markdown, in the order of ROWS."""
    found: dict = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        key = entry["row"], entry.get("size")
        if "accuracy" in entry:
            found.setdefault(key, {})[entry["seed"]] = entry["accuracy"]
        elif "ms" in entry:
            found[entry["row"], "cost"] = entry
    heads = ["", *(f"{size:,} examples" for size in TRAIN), "trainable", "ms a step", "peak MiB"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name in ROWS:
        cells = [name]
        for size in TRAIN:
            own, full = found.get((name, size), {}), found.get(("full", size), {})
            values = [100 * v for v in own.values()]
            apart = [100 * (own[s] - full[s]) for s in own if s in full and name != "full"]
            cell = f"{statistics.mean(values):.1f} ± {interval(values):.1f}" if values else ""
            if apart:
                cell += f" ({statistics.mean(apart):+.1f} ± {interval(apart):.1f})"
            cells.append(cell)
        more = found.get((name, "cost"))
        cells += (
            [f"{more['trainable']:,}", f"{more['ms']:.0f}", f"{more['peak_mib']:,}"]
            if more
            else [""] * 3
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what the flags ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="trec")
    parser.add_argument("--backbone", default="hf:sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--sizes", default="100,500,5452")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", default="methods.jsonl")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--child")
    parser.add_argument("--lr", type=float)
    flags = parser.parse_args()
    out = Path(flags.out)
    if flags.child:
        child(flags)
        return
    if flags.table:
        print(table(out))
        return
    sizes = [500] if flags.sweep or flags.cost else [int(s) for s in flags.sizes.split(",")]
    for size in sizes:
        for name in flags.rows.split(","):
            rates = SWEEP.get(name, ()) if flags.sweep else (None,)
            for lr in rates:
                lines = run_child(flags, name, size, lr)
                with open(out, "a", encoding="utf-8") as file:
                    for line in lines:
                        more = {"lr": lr} if lr else {}
                        file.write(json.dumps({"row": name, "size": size, **more, **line}) + "\n")
                shown = [line.get("accuracy", line) for line in lines]
                print(size, name, lr or "", shown, flush=True)
    if not flags.sweep:
        print(table(out))


if __name__ == "__main__":
    main()
