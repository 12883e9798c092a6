"""Compare fine-tuning methods on TREC-6 with few and with all examples.

    python benchmarks/methods.py --data=trec/ --backbone=hf:FOLDER [--rows=full,lora] [--sizes=100]
    python benchmarks/methods.py --out=benchmarks/methods.jsonl --table   # of existing results

Each row of the table trains in a separate process, once for each seed; a seed draws the same
examples for all rows. There is no validation split: the last weights are tested. Accuracy is on the
500 test questions: the mean and its 95 % interval over the seeds (Student's t), and in brackets the
difference from `full` on the same examples, with its interval. Step time (median) and peak memory
are measured by `--cost`: 30 steps of 32 rows of 40 tokens, without cached features, on an idle
machine. Learning rates are the best of `--sweep`, on other training rows with one seed.
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

# Student's t by number of seeds.
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 8: 2.36, 10: 2.26}
FULL = 1e-4  # learning rate of `full`
# Name -> changes to the config of `method: full`.
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
# Number of examples -> (batch size, epochs).
TRAIN = {100: (16, 20), 500: (16, 10), 5452: (32, 3)}


def merge(*changes: dict) -> dict:
    """Merge nested mappings, later ones over earlier ones; a section with a `name` is replaced."""
    result: dict = {}
    for change in changes:
        for key, value in change.items():
            both_mappings = isinstance(value, dict) and isinstance(result.get(key), dict)
            if both_mappings and not {"name"} & set(value):
                result[key] = merge(result[key], value)
            else:
                result[key] = value
    return result


def sample(path: Path, size: int, seed: int, folder: Path, other: bool = False) -> Path:
    """Write `size` rows drawn by the seed to a file in `folder` and return its path.

    Args:
        path: table to draw from.
        size: number of rows.
        seed: seed of the draw.
        folder: folder of the new file.
        other: draw the rows that follow those of `other=False`.
    """
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    random.Random(seed).shuffle(rows)
    drawn = rows[size : 2 * size] if other else rows[:size]
    output = folder / f"{size}_{seed}{'_other' if other else ''}.tsv"
    lines = ["\t".join(row) for row in (header, *drawn)]
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return output


def config(flags: argparse.Namespace, size: int, seed: int, folder: Path, changes: dict) -> dict:
    """Return the config of one run."""
    batch_size, epochs = TRAIN[size]
    test = Path(flags.data) / "test.tsv"
    if flags.sweep:
        test = sample(Path(flags.data) / "train.tsv", size, seed, folder, other=True)
    base = {
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
        "train": {"epochs": epochs, "batch_size": batch_size, "seed": seed},
        "evaluate": {"bootstrap": 0, "baselines": False},
        "export": {"enabled": False},
    }
    return merge(base, changes)


def run_worker(flags: argparse.Namespace) -> None:
    """Train one row of the table with each seed; print a line of JSON for each."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tfft
    from tfft.utils import console

    console.quiet(True)
    changes = json.loads(flags.worker)
    if flags.lr:
        changes = merge(changes, {"optimizer": {"learning_rate": flags.lr}})
    size = int(flags.sizes)
    for seed in range(flags.first_seed, flags.first_seed + flags.seeds):
        with tempfile.TemporaryDirectory() as folder:
            start = time.monotonic()
            run_config = config(flags, size, seed, Path(folder), changes)
            if flags.cost:
                cost(run_config, Path(folder))
                return
            run = tfft.train(run_config, workdir=Path(folder) / "run")
            result = {"seed": seed, "accuracy": run.metrics["test/accuracy"]}
            print(json.dumps({**result, "seconds": round(time.monotonic() - start, 1)}), flush=True)


def cost(run_config: dict, folder: Path) -> None:
    """Print step time, peak memory and parameters of 30 steps at a fixed shape."""
    from tfft.config import parse
    from tfft.distribute import strategies
    from tfft.model import masks
    from tfft.training import memory, memory_estimate, setup
    from tfft.training.input_pipeline import InputPipeline

    run_config = merge(
        run_config,
        {"train": {"batch_size": 32, "epochs": 30, "buckets": 1, "cache_features": False}},
    )
    config = parse(run_config)
    strategies.setup(config.distribute, 0, True)
    memory_before = memory.resident()
    times = []

    def steps() -> None:
        result, data, plan, schedule = setup.prepare(config, folder)
        masks.set_trainable(result.model, schedule.mask)
        pipeline = InputPipeline(result, data, plan)
        train_function, iterator = result.model.make_train_function(), pipeline.after(0)
        for _ in range(30):
            start = time.perf_counter()
            train_function(iterator, 1)
            times.append(time.perf_counter() - start)
        total, trainable = masks.parameters(schedule.mask)
        width = plan.bucket_lengths[-1]
        measurements.update(trainable=trainable, total=total, width=width)
        models.append(result)

    measurements: dict = {}
    models: list = []
    peak = memory.peak_of(steps) - memory_before
    expected = memory_estimate.process(
        memory_estimate.step(models[0].model, 32, measurements["width"])
    )
    measurements |= {"ms": round(1000 * statistics.median(times[5:]), 1)}
    measurements |= {"peak_mib": round(peak / 2**20), "estimate_mib": round(expected / 2**20)}
    print(json.dumps(measurements), flush=True)


def start_worker(
    flags: argparse.Namespace, name: str, size: int, learning_rate: float | None = None
) -> list:
    """Train a row in a separate process and return its results, one mapping per seed."""
    command = [sys.executable, __file__, f"--data={flags.data}", f"--backbone={flags.backbone}"]
    command += [f"--worker={json.dumps(ROWS[name])}", f"--sizes={size}", f"--seeds={flags.seeds}"]
    command += [f"--first-seed={flags.first_seed}"]
    command += ["--cost"] * flags.cost + ["--sweep"] * flags.sweep
    command += [f"--lr={learning_rate}"] if learning_rate else []
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]
    if process.returncode:
        print(process.stderr[-1500:], file=sys.stderr)
    return lines


def interval(values: list[float]) -> float:
    """Return half the width of the 95 % interval of the mean."""
    if len(values) < 2:
        return float("nan")
    nearest = max(n for n in T95 if n <= len(values))
    return T95[nearest] * statistics.stdev(values) / len(values) ** 0.5


def table(path: Path) -> str:
    """Return the results as a Markdown table, in the order of ROWS."""
    results: dict = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        key = entry["row"], entry.get("size")
        if "accuracy" in entry:
            results.setdefault(key, {})[entry["seed"]] = entry["accuracy"]
        elif "ms" in entry:
            results[entry["row"], "cost"] = entry
    header = ["", *(f"{size:,} examples" for size in TRAIN), "trainable", "ms a step", "peak MiB"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for name in ROWS:
        cells = [name]
        for size in TRAIN:
            accuracies, reference = results.get((name, size), {}), results.get(("full", size), {})
            values = [100 * v for v in accuracies.values()]
            differences = [
                100 * (accuracies[s] - reference[s])
                for s in accuracies
                if s in reference and name != "full"
            ]
            cell = f"{statistics.mean(values):.1f} ± {interval(values):.1f}" if values else ""
            if differences:
                cell += f" ({statistics.mean(differences):+.1f} ± {interval(differences):.1f})"
            cells.append(cell)
        cost = results.get((name, "cost"))
        cells += (
            [f"{cost['trainable']:,}", f"{cost['ms']:.0f}", f"{cost['peak_mib']:,}"]
            if cost
            else [""] * 3
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark that the flags select."""
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
    parser.add_argument("--worker", help="train one row; used by the benchmark itself")
    parser.add_argument("--lr", type=float)
    flags = parser.parse_args()
    output = Path(flags.out)
    if flags.worker:
        run_worker(flags)
        return
    if flags.table:
        print(table(output))
        return
    sizes = [500] if flags.sweep or flags.cost else [int(s) for s in flags.sizes.split(",")]
    for size in sizes:
        for name in flags.rows.split(","):
            rates = SWEEP.get(name, ()) if flags.sweep else (None,)
            for learning_rate in rates:
                lines = start_worker(flags, name, size, learning_rate)
                with open(output, "a", encoding="utf-8") as file:
                    for line in lines:
                        rate_field = {"lr": learning_rate} if learning_rate else {}
                        file.write(
                            json.dumps({"row": name, "size": size, **rate_field, **line}) + "\n"
                        )
                summary = [line.get("accuracy", line) for line in lines]
                print(size, name, learning_rate or "", summary, flush=True)
    if not flags.sweep:
        print(table(output))


if __name__ == "__main__":
    main()
