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

    from tfft.config import parse
    from tfft.data import batches
    from tfft.distribute import strategies
    from tfft.evaluation import evaluate
    from tfft.training import loop, setup
    from tfft.training.checkpoints import Checkpoints
    from tfft.utils import console

    console.quiet(True)
    method = {"name": "top", "stages": flags.top} if flags.top else {"name": "head"}
    rate = 5e-4 if flags.top else 3e-3

    def config(cache: bool, folder: Path) -> dict:
        return {
            "data": {
                "train": str(Path(flags.data) / "train.tsv"),
                "test": str(Path(flags.data) / "test.tsv"),
                "text": "question",
                "label": "type",
                "cache_dir": str(folder / "cache"),
            },
            "model": {"backbone": flags.backbone},
            "method": method,
            "optimizer": {"learning_rate": rate},
            "train": {
                "epochs": flags.epochs,
                "cache_features": cache,
            },
            "evaluate": {"bootstrap": 0, "baselines": False},
        }

    measurements: dict = {"method": method, "epochs": flags.epochs}
    for cache in (True,) if flags.only_cached else (True, False):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            parsed_config = parse(config(cache, folder))
            strategies.setup(parsed_config.distribute, 0, parsed_config.train.deterministic)
            result, data, plan, schedule = setup.prepare(parsed_config, folder)
            (folder / "checkpoints").mkdir()
            splits = [data.train, data.validation]
            rows = [batches.Tokens(split, result.inputs.pad_id) for split in splits]
            if cache:
                # The first call traces, as in training.
                for key in ("forward_traced_s", "forward_s"):
                    start = time.perf_counter()
                    for split, tokens in zip(splits, rows, strict=True):
                        evaluate.predict(result.model, split, tokens, 64)
                    measurements[key] = round(time.perf_counter() - start, 2)
            checkpoints = Checkpoints(folder / "checkpoints", 1, weight_paths=result.trained)
            state = checkpoints.restore(result.model)
            start = time.perf_counter()
            loop.fit(result, data, plan, schedule, state, checkpoints)
            key = "cached" if cache else "plain"
            measurements[f"{key}_s"] = round(time.perf_counter() - start, 2)
            result.load_weights()
            test = result.evaluate("test", bootstrap=0, baselines=False)
            measurements[f"{key}_accuracy"] = round(test.metrics["accuracy"], 4)
        tf.keras.backend.clear_session()
    measurements["cached_to_forward"] = round(
        measurements["cached_s"] / measurements["forward_s"], 2
    )
    if not flags.only_cached:
        measurements["plain_to_cached"] = round(
            measurements["plain_s"] / measurements["cached_s"], 2
        )
    print(json.dumps(measurements))


if __name__ == "__main__":
    main()
