"""`method: auto`: measure the backbone, the data and the device, and resolve the config."""

import time
from pathlib import Path

import tensorflow as tf

from tfft.config import Config, dump, load_saved
from tfft.data import Dataset, batches, model_inputs
from tfft.distribute import strategies
from tfft.evaluation import linear_probe
from tfft.methods import auto
from tfft.model import masks
from tfft.spec import Backbone, Stage
from tfft.training import memory, run_directory, setup
from tfft.training.input_pipeline import InputPipeline
from tfft.utils import console
from tfft.utils.errors import UserError
from tfft.utils.files import write_atomic


def resolve(config: Config, workdir: Path | None) -> Config:
    """Return the config that `method: auto` stands for, any other config unchanged.

    What was decided in `workdir` before is kept.

    Raises:
        UserError: the run directory belongs to another config, or there are several workers.
    """
    if workdir is not None and strategies.workers().is_chief and run_directory.untrained(workdir):
        # A run that failed before its first step may be started again with another config.
        for name in ("config.given.yaml", "advice.txt"):  # advice that was not followed
            (workdir / name).unlink(missing_ok=True)
    if config.method.name != "auto":
        return config
    if strategies.workers().count > 1:
        raise UserError(
            "method: auto measures the device, so several workers would not agree; run tfft show "
            "and train the config that it prints"
        )
    text = dump(config)
    # 1. A run that was advised before keeps its advice: a second measurement could differ.
    original = workdir / "config.given.yaml" if workdir is not None else None
    if original is not None and original.is_file() and (original.parent / "config.yaml").is_file():
        run_directory.check_same(original, text)
        return load_saved(original.parent / "config.yaml")
    # 2. Measure, decide, and store the original beside the config that it resolved to.
    resolved, reasons = auto.advise(config, measure(config))
    console.log("\n".join(["method auto:", *(f"  {line}" for line in reasons)]))
    if workdir is not None and original is not None:
        run_directory.open_workdir(resolved, workdir)
        write_atomic(original, text)
        write_atomic(workdir / "config.yaml", dump(resolved))
        write_atomic(workdir / "advice.txt", "\n".join(reasons) + "\n")
    return resolved


def measure(config: Config) -> auto.Facts:
    """Count the data and the parameters, and time a forward pass."""
    backbone = setup.load_backbone(config)
    inputs, data = setup.read_data(config, backbone)
    rows = model_inputs.unaugmented_rows(data.train, inputs)
    classes, probe = len(data.labels), None
    is_text = "text" in backbone.reads  # the rules of texts also hold for an image beside a text
    if not is_text:
        probe = linear_probe.probe(backbone.model, rows, data.train, classes, config.train.seed)
    return auto.Facts(
        num_rows=len(data.train),
        answers=f"{classes} {data.train.kind.noun}",
        mean_tokens=float(data.train.lengths.mean()) if is_text else None,
        num_parameters=backbone.model.count_params(),
        num_blocks=masks.num_blocks((*backbone.stages, Stage("head", "head/"))),
        device=tf.config.list_logical_devices()[-1].device_type,
        # `available` reads the memory of the machine, not that of an accelerator.
        free_memory=None if strategies.accelerated() else memory.available(),
        # A row is all of its windows.
        seconds_per_row=time_forward_pass(backbone, data.train, rows)
        * len(data.train.examples)
        / len(data.train),
        time_limit=config.method.time.seconds if config.method.time is not None else None,
        probe_accuracy=(probe.accuracy, probe.chance) if probe is not None else None,
    )


def time_forward_pass(backbone: Backbone, split: Dataset, rows: batches.Rows) -> float:
    """Return the seconds that a forward pass of the backbone takes per example of median length.

    Args:
        backbone: of which the whole model runs.
        split: training split.
        rows: its model inputs.
    """
    sorted_batches = batches.plan_sorted(split.lengths, 32)
    # Sorted by length, so the middle batch has rows of median length.
    batch = sorted_batches[len(sorted_batches) // 2]
    arrays = rows.arrays(batch)
    backbone.model.predict_on_batch(arrays)  # traces
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        backbone.model.predict_on_batch(arrays)
        seconds.append(time.perf_counter() - start)
    # The fastest of three: other processes can only slow a measurement down.
    return min(seconds) / len(batch.positions)


def seconds_per_training_row(config: Config, steps: int = 8) -> float:
    """Return the seconds that a training step takes per row, measured over `steps` steps.

    The batches are those with which the training of the config begins. Nothing is written.
    """
    run, data, plan, _ = setup.prepare(config, Path("runs"))
    pipeline = InputPipeline(run, data, plan)
    pipeline.read_rows()
    train_function, iterator = run.model.make_train_function(), pipeline.after(0)
    float(train_function(iterator, 1)["loss"])  # traces
    start = time.perf_counter()
    float(train_function(iterator, steps)["loss"])
    return (time.perf_counter() - start) / (steps * config.train.batch_size)
