"""Measure training on cached features: the head alone, against one forward pass and no cache.

    python benchmarks/feature_cache.py --data=trec/ --backbone=hf:FOLDER [--epochs=20] [--top=0]

In one process: the time of one forward pass over the training and validation rows, then that of the
training (`loop.fit`, which computes the cache and validates each epoch), with the cache and without
it, and the test accuracy of both.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def main() -> None:
    """Measure and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="trec")
    parser.add_argument("--backbone", default="hf:sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--top", type=int, default=0, help="trainable blocks; 0: only the head")
    parser.add_argument("--only-cached", action="store_true")
    flags = parser.parse_args()

    import tensorflow as tf

    from tfft.utils import console

    console.quiet(True)
    measurements: dict[str, Any] = {"method": method(flags.top), "epochs": flags.epochs}
    for cache in (True,) if flags.only_cached else (True, False):
        with tempfile.TemporaryDirectory() as name:
            measurements |= measure_training(run_config(flags, cache, Path(name)), Path(name))
        tf.keras.backend.clear_session()
    measurements["cached_to_forward"] = round(
        measurements["cached_s"] / measurements["forward_s"], 2
    )
    if not flags.only_cached:
        measurements["plain_to_cached"] = round(
            measurements["plain_s"] / measurements["cached_s"], 2
        )
    print(json.dumps(measurements))


def method(blocks: int) -> dict[str, Any]:
    """Return the section `method` that trains the head and so many blocks below it."""
    return {"name": "top", "stages": blocks} if blocks else {"name": "head"}


def run_config(flags: argparse.Namespace, cache: bool, folder: Path) -> dict[str, Any]:
    """Return the config of a training.

    Args:
        flags: of the command line.
        cache: whether the features of the frozen stages are cached.
        folder: where the cache is.
    """
    return {
        "data": {
            "train": str(Path(flags.data) / "train.tsv"),
            "test": str(Path(flags.data) / "test.tsv"),
            "text": "question",
            "label": "type",
            "cache_dir": str(folder / "cache"),
        },
        "model": {"backbone": flags.backbone},
        "method": method(flags.top),
        "optimizer": {"learning_rate": 5e-4 if flags.top else 3e-3},
        "train": {
            "epochs": flags.epochs,
            "cache_features": cache,
        },
        "evaluate": {"bootstrap": 0, "baselines": False},
    }


def measure_training(config: dict[str, Any], folder: Path) -> dict[str, float]:
    """Return seconds and test accuracy of a training; with the cache also a forward pass's seconds.

    Args:
        config: of the training.
        folder: the run directory.
    """
    from tfft.config import parse
    from tfft.distribute import strategies
    from tfft.training import loop, setup
    from tfft.training.checkpoints import Checkpoints

    parsed_config = parse(config)
    strategies.setup(parsed_config.distribute, 0, parsed_config.train.deterministic)
    result, data, plan, schedule = setup.prepare(parsed_config, folder)
    (folder / "checkpoints").mkdir()
    cache = config["train"]["cache_features"]
    measurements = measure_forward_pass(result, data) if cache else {}
    checkpoints = Checkpoints(folder / "checkpoints", 1, weight_paths=result.trained)
    state = checkpoints.restore(result.model)
    start = time.perf_counter()
    loop.fit(result, data, plan, schedule, state, checkpoints)
    key = "cached" if cache else "plain"
    measurements[f"{key}_s"] = round(time.perf_counter() - start, 2)
    result.load_weights()
    test = result.evaluate("test", bootstrap=0, baselines=False)
    measurements[f"{key}_accuracy"] = round(test.metrics["accuracy"], 4)
    return measurements


def measure_forward_pass(run: Any, data: Any) -> dict[str, float]:
    """Return the seconds of a forward pass over the training and validation rows.

    The first of two passes traces, as in training.
    """
    from tfft.data import batches
    from tfft.evaluation import evaluate

    splits = [data.train, data.validation]
    rows = [batches.Tokens(split, run.inputs.pad_id) for split in splits]
    seconds = {}
    for key in ("forward_traced_s", "forward_s"):
        start = time.perf_counter()
        for split, tokens in zip(splits, rows, strict=True):
            evaluate.predict(run.task, run.model, split, tokens, 64, run.fitted)
        seconds[key] = round(time.perf_counter() - start, 2)
    return seconds


if __name__ == "__main__":
    main()
