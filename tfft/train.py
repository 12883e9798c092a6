"""The road of one run: config -> backbone -> inputs -> data -> head -> method -> mask ->
optimizer -> fit -> evaluate -> export. Read `run` from top to bottom."""

import gc
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf

from tfft import backbones, preprocess, regularizers, report
from tfft import model as model_room
from tfft.config import Config, TrainConfig, dump, load, parse
from tfft.data import Datasets, batches, dataset_builder, model_inputs
from tfft.distribute import strategies
from tfft.evaluation import evaluate, linear_probe
from tfft.methods import METHODS, auto
from tfft.model import Model, batch_norm, masks, surgery
from tfft.preprocess import Inputs
from tfft.regularizers import distillation
from tfft.run import Run, load_run
from tfft.spec import Backbone, Mask, Rule
from tfft.tasks import TASKS
from tfft.training import (
    fingerprint,
    loop,
    memory,
    memory_estimate,
    optimizers,
    phases,
    run_directory,
)
from tfft.training.checkpoints import Checkpoints, TrainingState
from tfft.training.input_pipeline import BatchPlan
from tfft.training.phases import TrainingSchedule
from tfft.utils import console
from tfft.utils.errors import UserError, nearest, require
from tfft.utils.files import write_atomic

ADAPTED = 50  # batches that BatchNorm's statistics are set anew from


@memory.shortage_told()
def run(config: Config, workdir: Path, epochs: int | None = None) -> Run:
    """Fine-tune as configured; everything that is learned is written to `workdir`.

    The same config in the same directory goes on at the last checkpoint, or returns the finished
    run.

    Args:
        epochs: stop after so many of `train.epochs`, as if interrupted; a later call goes on.

    Raises:
        UserError: something that the user can fix.
        Interrupted: a signal or a file asked for it, `epochs` are over, or another worker was lost;
            the state is saved.
    """
    with run_directory.locked(workdir), strategies.lost_workers_told(workdir):
        gc.collect()  # a model, its graphs and its data refer to each other: free earlier runs'
        workers = strategies.workers()  # more than one where TF_CONFIG says so; the first writes
        console.quiet(not workers.first)
        config = advised(config, workdir)
        if workers.first:
            run_directory.open_workdir(config, workdir)
        if (workdir / "metrics.json").is_file():
            console.log(f"{workdir}: this run is finished; nothing to do")
            return load_run(workdir)
        if config.train.tensorboard:
            require("tensorboard", "tensorboard")

        seed, train = config.train.seed, config.train
        strategy = strategies.setup(config.distribute, seed, train.deterministic)  # devices, seeds
        fingerprint.require_equal_on_workers(strategy, fingerprint.settings(config))
        with strategy.scope():  # every variable is born here
            result, data, plan, course = prepare(config, workdir)
        keep = Checkpoints(
            workdir / "checkpoints",
            train.checkpoint.keep,
            workers.first,
            result.trained,
            result.depends_on,
        )
        state = keep.restore(result.model)  # 1. this run's checkpoint  2. the pretrained weights
        result.targets = teachers_targets(config, data)
        if workers.first:
            run_directory.describe(result, data, course)

        loop.fit(result, data, plan, course, state, keep, epochs)
        result.load_weights()  # the best of the run, not the last
        conclude(result, data, course, state)
        # None leaves before the run directory is whole.
        strategies.sum_over_workers(strategy, 0)
        return result


def prepare(config: Config, workdir: Path) -> tuple[Run, Datasets, BatchPlan, TrainingSchedule]:
    """Everything before the first step: backbone, tokenizer, data, and a compiled model."""
    backbone = backbones.load(config.model, config.distribute.precision)
    inputs, data = read(config, backbone)
    check_metric(config, data.labels)
    strategy = tf.distribute.get_strategy()
    depends_on = fingerprint.of(config, backbone, data)
    fingerprint.require_equal_on_workers(strategy, depends_on)
    plan = BatchPlan.make(config, data, isinstance(strategy, tf.distribute.TPUStrategy))
    model, course, changed = build_model(config, backbone, data.labels, plan)
    if config.train.batch_norm == "adapt":
        plain = model_inputs.plain(data.train, inputs)
        planned = plan.epoch(data, config.train, 0)[:ADAPTED]
        batch_norm.adapt(model, (plain.arrays(batch) for batch in planned))
    if config.train.batch_norm != "frozen":  # their statistics move, or have moved
        changed |= {v.path for layer in batch_norm.layers(model) for v in layer.weights}
    trained = trained_paths(model, course.mask, changed)
    if config.model.weights == "none":
        trained = None  # there are no files to read the rest from again
    result = Run(workdir, config, model, backbone, inputs, data.labels, trained)
    result.datasets, result.depends_on = data, depends_on
    return result, data, plan, course


def read(config: Config, backbone: Backbone) -> tuple[Inputs, Datasets]:
    """The preparation of raw rows, on the host and in the graph; and the rows, prepared.

    Raises:
        UserError: the task, the backbone and the tokenizer do not fit together.
    """
    if backbone.modality != config.task.modality:
        raise UserError(
            f"task.name: {config.task.name} reads {config.task.modality}s, the backbone "
            f"{config.model.backbone} {backbone.modality}s"
        )
    inputs = preprocess.load(config.model, config.data, backbone.picture, backbone.tokenizer)
    if isinstance(inputs, preprocess.TextInputs):
        check_tokens(config, backbone, inputs)
    labels = backbone.head.labels if backbone.head is not None else None
    return inputs, dataset_builder.build(config.data, inputs, dataset_builder.DatasetSettings.of(config, labels))


def build_model(
    config: Config, backbone: Backbone, labels: Sequence[str], plan: BatchPlan
) -> tuple[Model, TrainingSchedule, set[str]]:
    """Backbone and head -> surgery -> method -> masks -> optimizer -> regularization.

    Returns the compiled model, what moves in it when, and the paths that surgery changed.
    """
    task = TASKS[config.task.name]
    model = model_room.assemble(backbone, task, config.task, labels)
    stages = model_room.stages(backbone, model)
    changed = surgery.apply(model, stages, config.model.surgery, config.train.seed)
    method = METHODS[config.method.name].apply(model, stages, config.method)  # may attach layers
    own = [Rule(r.match, r.trainable, r.learning_rate) for r in config.mask]
    course = phases.resolve(
        model, stages, method, own, config.optimizer, plan.per_epoch, plan.total
    )
    masks.set_trainable(model, course.mask)  # whatever moves at some time has a slot
    if config.train.batch_norm == "frozen":
        batch_norm.freeze(model)
    elif (momentum := config.train.batch_norm_momentum) is not None:
        for layer in batch_norm.layers(model):
            layer.momentum = momentum
    rematerialise(config, model, backbone)
    precision = config.distribute.precision
    optimizer = optimizers.build(config.optimizer, course, plan.per_epoch, precision)
    loss = task.loss(config.task)
    if (taught := config.regularization.distillation) is not None:
        loss = distillation.Distilled(loss, taught.temperature, taught.weight)
    model.compile(optimizer, loss, jit_compile=False)
    optimizer.build(model.trainable_variables)
    regularizers.attach(model, course.mask, changed, config.regularization)
    return model, course, changed


def trained_paths(model: Model, mask: Mask, changed: Collection[str]) -> frozenset[str] | None:
    """What a run saves: the variables that are not as the backbone's files have them; None: all."""
    moving = {entry.path for entry in mask.entries if entry.trainable}
    kept = moving | set(changed) | {e.path for e in mask.entries if e.stage == "head"}
    return None if kept >= {v.path for v in model.weights} else frozenset(kept)


def teachers_targets(config: Config, data: Datasets) -> np.ndarray | None:
    """The labels of the training rows with the teacher's logits beside them, if there is one."""
    taught = config.regularization.distillation
    if taught is None:
        return None
    try:
        teacher = load_run(taught.teacher)
    except UserError as error:
        raise UserError(f"regularization.distillation.teacher: {error}") from None
    same = teacher.config.task.modality == config.task.modality
    if not same or teacher.inputs.pair != (config.data.text_pair is not None):
        raise UserError("regularization.distillation.teacher: reads rows of another kind")
    console.log(f"distillation: {taught.teacher} answers {len(data.train):,} rows")
    logits = teacher.logits([data.train.raw(at) for at in range(len(data.train))])
    return distillation.targets(data.train.labels, logits, teacher.labels, data.labels)


def conclude(result: Run, data: Datasets, course: TrainingSchedule, state: TrainingState) -> None:
    """Evaluate, export, report: what a run leaves behind."""
    config, workdir = result.config, result.workdir
    result.tune(data.validation)
    evaluations = {
        name: result.evaluate_on(split, config.evaluate, data.train)
        for name in ("validation", "test")
        if (split := getattr(data, name)) is not None
    }
    for name, evaluation in evaluations.items():
        console.log(evaluate.text(evaluation, name, config.evaluate.confidence))
    if not strategies.workers().first:
        return
    # `again`: a run that was killed after its export has published these weights already.
    exported = result.export(again=False) if config.export.enabled else None
    page = report.PageImages()
    if config.task.modality == "image":
        changed = model_inputs.changed(
            data.train, result.inputs, config.augmentation, len(data.labels), config.train.seed
        )
        page = report.shown(result.model, result.inputs, data, changed, evaluations)
    report.write(workdir, config, state.history, evaluations, table(course), data, exported, page)
    moved = table(course).splitlines()[-1]
    report.model_card.write(workdir, config, run_directory.read_facts(workdir), state, evaluations, moved)
    run_directory.finish(result, evaluations, state)


def advised(config: Config, workdir: Path | None) -> Config:
    """The plain config that `method: auto` stands for; what was decided in `workdir` stays.

    Raises:
        UserError: the run directory is of another config.
    """
    if workdir is not None and strategies.workers().first and run_directory.untrained(workdir):
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
    given = workdir / "config.given.yaml" if workdir is not None else None
    if given is not None and given.is_file() and (given.parent / "config.yaml").is_file():
        run_directory.check_same(given, text)
        return load(given.parent / "config.yaml")
    plain, reasons = auto.advise(config, facts(config))
    console.log("\n".join(["method auto:", *(f"  {line}" for line in reasons)]))
    if workdir is not None and given is not None:
        run_directory.open_workdir(plain, workdir)
        write_atomic(given, text)
        write_atomic(workdir / "config.yaml", dump(plain))
        write_atomic(workdir / "advice.txt", "\n".join(reasons) + "\n")
    return plain


def facts(config: Config) -> auto.Facts:
    """What the advice rests on: counted, and a forward pass timed."""
    backbone = backbones.load(config.model, config.distribute.precision)
    inputs, data = read(config, backbone)
    planned = batches.in_order(data.train.lengths, 32)
    batch = planned[len(planned) // 2]
    plain = model_inputs.plain(data.train, inputs)
    arrays = plain.arrays(batch)
    backbone.model.predict_on_batch(arrays)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        backbone.model.predict_on_batch(arrays)
        times.append(time.perf_counter() - began)
    blocks = [s for s in backbone.stages if s.name.startswith("block_")]
    accelerated = strategies.accelerated()
    classes, probe = len(data.labels), None
    if backbone.modality == "image":
        probe = linear_probe.probe(backbone.model, plain, data.train, classes, config.train.seed)
    return auto.Facts(
        rows=len(data.train),
        classes=classes,
        tokens=float(data.train.lengths.mean()) if backbone.modality == "text" else None,
        parameters=backbone.model.count_params(),
        blocks=len(blocks),
        device=tf.config.list_logical_devices()[-1].device_type,
        memory=None if accelerated else memory.available(),
        row_seconds=min(times) / len(batch.positions),
        seconds=config.method.time.seconds if config.method.time is not None else None,
        probe=(probe.accuracy, probe.chance) if probe is not None else None,
    )


def preview(config: Config) -> str:
    """The mask table and the memory estimate of a config, as text; trains nothing."""
    result, _, plan, course = prepare(config, Path("runs"))
    count = micro_rows(config.train)
    width = plan.buckets[-1] if config.task.modality == "text" else None
    needed = memory_estimate.text(memory_estimate.step(result.model, count, width), count, width)
    return f"{table(course)}\n\n{needed}"


def micro_rows(train: TrainConfig) -> int:
    """Rows that a device holds at once, on one device; all of the batch where that is automatic."""
    given = train.micro_batch
    return min(given, train.batch_size) if isinstance(given, int) else train.batch_size


def table(course: TrainingSchedule) -> str:
    """The mask as text."""
    return masks.table(course.mask, course.starts)


def rematerialise(config: Config, model: Model, backbone: Backbone) -> None:
    """Let the stages of `train.remat` compute their activations again in the backward pass.

    Raises:
        UserError: there is no such stage, or it holds no whole layer.
    """
    wanted = config.train.remat
    if not wanted:
        return
    if config.regularization.adversarial is not None:
        raise UserError("train.remat: does not go with regularization.adversarial")
    stages = {stage.name: stage for stage in model_room.stages(backbone, model)}
    # Recomputing the head, which keeps little, gains nothing.
    names = [n for n in stages if n != "head"] if wanted is True else wanted
    for name in names:
        if name not in stages:
            raise UserError(f"train.remat: no stage {name!r}{nearest(name, stages)}")
    found = model_room.rematerialise(model, [stages[name] for name in names])
    if not found:
        raise UserError(f"train.remat: {', '.join(names)}: no layer lies wholly in these stages")
    console.log(f"remat: {', '.join(found)}")


def check_metric(config: Config, labels: Sequence[str]) -> None:
    """The metric that picks the best weights must exist for this many classes.

    Raises:
        UserError: it does not, such as the top-5 accuracy of five classes.
    """
    task, watched = TASKS[config.task.name], config.train.metric
    truth = np.zeros((1, len(labels)), np.float32) if task.multi_label else np.zeros(1, np.int32)
    figures = task.metrics(np.zeros((1, len(labels)), np.float32), truth, None)
    if watched not in figures:
        raise UserError(
            f"train.metric: {config.task.name} of {len(labels)} classes has {', '.join(figures)}. "
            f"Received: {watched!r}"
        )


def check_tokens(config: Config, backbone: Backbone, inputs: preprocess.TextInputs) -> None:
    """The embeddings must have a row for every id of the tokenizer, and every position.

    Raises:
        UserError: they do not.
    """
    tables = [v.shape[0] for v in backbone.model.weights if v.path.endswith("embeddings")]
    if tables and inputs.vocabulary_size > max(tables):
        raise UserError(
            f"model.backbone: the tokenizer has {inputs.vocabulary_size:,} tokens, the embeddings "
            f"{max(tables):,}: the files are of two different models"
        )
    # What is advised is not known yet, and takes none.
    method = METHODS.get(config.method.name)
    taken = method.positions(config.method) if method is not None else 0
    limit = backbone.max_length
    if limit is not None and inputs.max_length + taken > limit:
        own = f", of which method {config.method.name} takes {taken}" if taken else ""
        raise UserError(
            f"data.max_length: the backbone has positions for {limit} tokens{own}; "
            f"received {inputs.max_length}"
        )


class _CallableModule(ModuleType):
    """Lets `tfft.train(...)` be the call and `tfft.train.run` the road, in any import order."""

    def __call__(
        self,
        config: str | Path | Mapping[str, Any],
        workdir: str | Path | None = None,
        **overrides: Any,
    ) -> Run:
        """Fine-tune and return the run.

        Args:
            config: a YAML file, or its content as nested mappings.
            workdir: the run directory; default: `runs/` and the file's name, `runs/tfft` for a
                mapping.
            overrides: sections with the keys to change, e.g. `train={"epochs": 1}`.

        Raises:
            tfft.utils.errors.UserError: something to fix, one line a mistake.
        """
        if isinstance(config, Mapping):
            return run(parse(config, changes=overrides), Path(workdir or "runs/tfft"))
        parsed = load(config, changes=overrides)
        return run(parsed, Path(workdir or f"runs/{Path(config).stem}"))


sys.modules[__name__].__class__ = _CallableModule
