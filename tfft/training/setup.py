"""Everything before the first step: the data, the compiled model and the schedule of a config."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfft import backbones, preprocess, regularizers
from tfft.config import Config
from tfft.data import Datasets, dataset_builder, model_inputs
from tfft.methods import METHODS
from tfft.model import Model, assemble, batch_norm, masks, rematerialise, stages, surgery
from tfft.preprocess import Inputs
from tfft.regularizers import distillation
from tfft.run import Run, load_run
from tfft.spec import Backbone, Mask, Rule
from tfft.tasks import TASKS
from tfft.training import fingerprint, optimizers, phases
from tfft.training.batch_plan import BatchPlan
from tfft.training.phases import TrainingSchedule
from tfft.utils import console
from tfft.utils.errors import UserError, nearest

ADAPT_BATCHES = 50  # from which `train.batch_norm: adapt` computes the statistics


def prepare(config: Config, workdir: Path) -> tuple[Run, Datasets, BatchPlan, TrainingSchedule]:
    """Load the backbone and the data, and build and compile the model.

    Raises:
        UserError: something that the user can fix.
    """
    # 1. Backbone and data, and whether all workers have the same.
    backbone = load_backbone(config)
    inputs, data = read_data(config, backbone)
    check_metric(config, data)
    strategy = tf.distribute.get_strategy()
    depends_on = fingerprint.of(config, backbone, data)
    fingerprint.require_equal_on_workers(strategy, depends_on)
    # 2. The plan before the model: schedules are in steps.
    plan = BatchPlan.create(config, data, isinstance(strategy, tf.distribute.TPUStrategy))
    model, schedule, changed = build_model(config, backbone, data.labels, plan)
    # 3. Statistics of the new data, from batches of the first epoch.
    if config.train.batch_norm == "adapt":
        rows = model_inputs.unaugmented_rows(data.train, inputs)
        first_batches = plan.epoch(data, config.train, 0)[:ADAPT_BATCHES]
        batch_norm.adapt(model, (rows.arrays(batch) for batch in first_batches))
    # 4. What `best/` must hold besides the backbone's files.
    if config.train.batch_norm != "frozen":  # the statistics change, or have changed
        changed |= {v.path for layer in batch_norm.layers(model) for v in layer.weights}
    trained = saved_paths(model, schedule.mask, changed)
    if any(tower.weights == "none" for tower in config.model.towers.values()):
        trained = None  # there are no files from which the rest could be read again
    run = Run(workdir, config, model, backbone, inputs, data.labels, trained)
    run.datasets, run.depends_on = data, depends_on
    targets, has_new_head = data.train.targets, backbone.head is None
    run.fitted = run.task.fit_targets(config.task, targets, has_new_head)
    return run, data, plan, schedule


def load_backbone(config: Config) -> Backbone:
    """Return the backbone of a config, with its stored head as the task uses it.

    Raises:
        UserError: the backbone cannot be loaded, or is not for the task.
    """
    backbone, task = backbones.load(config.model, config.distribute.precision), config.task
    if backbone.reads != config.reads:
        raise UserError(
            f"task.name: {task.name} reads {config.reads[0]}s, the backbone "
            f"{config.model.title} {backbone.reads[0]}s"
        )
    if TASKS[task.name].of_tokens and "sequence" not in backbone.features:
        raise UserError(
            f"task.name: {task.name} needs a vector of each token; the backbone "
            f"{config.model.title} gives {', '.join(backbone.features)}"
        )
    if backbone.head is None:
        return backbone
    return replace(backbone, head=TASKS[task.name].stored_head(backbone.head))


def read_data(config: Config, backbone: Backbone) -> tuple[Inputs, Datasets]:
    """Return the preprocessing of raw rows, and the prepared splits.

    Raises:
        UserError: the task, the backbone and the tokenizer do not fit together, or the data have
            mistakes.
    """
    inputs = preprocess.load(
        config.model, config.data, config.task, backbone.image_spec, backbone.tokenizer
    )
    if inputs.text is not None:
        check_tokens(config, backbone, inputs.text)
        if TASKS[config.task.name].of_tokens and config.export.enabled:
            # Now, not after the training: not every tokenizer has offsets in the graph.
            inputs.graph().located(*[tf.constant(["a"])] * len(inputs.columns))
    labels = backbone.head.labels if backbone.head is not None else None
    settings = dataset_builder.DatasetSettings.of(config, labels)
    return inputs, dataset_builder.build(config.data, inputs, settings)


def build_model(
    config: Config, backbone: Backbone, labels: Sequence[str], plan: BatchPlan
) -> tuple[Model, TrainingSchedule, set[str]]:
    """Build head, surgery, method, masks, optimizer and regularizers on a backbone, in this order.

    Returns:
        The compiled model, its schedule, and the paths of the variables that surgery changed.

    Raises:
        UserError: the config does not fit the model.
    """
    task = TASKS[config.task.name]
    model = assemble(backbone, task, config.task, labels)
    model_stages = stages(backbone, model)
    # Before the method, so that its adapters start from the weights that surgery left.
    changed = surgery.apply(model, model_stages, config.model.surgery, config.train.seed)
    # The method may inject layers, so it comes before the masks.
    method_phases = METHODS[config.method.name].apply(model, model_stages, config.method)
    rules = [Rule(r.match, r.trainable, r.learning_rate) for r in config.mask]
    schedule = phases.resolve(
        model, model_stages, method_phases, rules, config.optimizer, plan.per_epoch, plan.total
    )
    # What is trainable in any phase needs its optimizer slots from the start.
    masks.set_trainable(model, schedule.mask)
    if config.train.batch_norm == "frozen":
        batch_norm.freeze(model)
    elif (momentum := config.train.batch_norm_momentum) is not None:
        for layer in batch_norm.layers(model):
            layer.momentum = momentum
    apply_remat(config, model, backbone)
    precision = config.distribute.precision
    optimizer = optimizers.build(config.optimizer, schedule, plan.per_epoch, precision)
    loss = task.loss(config.task)
    if (section := config.regularization.distillation) is not None:
        loss = distillation.DistillationLoss(loss, section.temperature, section.weight)
    # XLA is an option of the train step, chosen in the dry run. Keras' `jit_compile` fails under
    # op determinism.
    model.compile(optimizer, loss, jit_compile=False)
    # Before `restore`, which assigns the slots by their order.
    optimizer.build(model.trainable_variables)
    regularizers.attach(model, schedule.mask, changed, config.regularization)
    return model, schedule, changed


def saved_paths(model: Model, mask: Mask, changed: Collection[str]) -> frozenset[str] | None:
    """Return the paths of the variables that a run saves; None: all.

    These are the ones that differ from the backbone's files: trained ones, those that surgery
    changed, and the head.
    """
    trainable = {entry.path for entry in mask.entries if entry.trainable}
    saved = trainable | set(changed) | {e.path for e in mask.entries if e.stage == "head"}
    # None where all variables are saved: the run can then be loaded without the backbone's files.
    return None if saved >= {v.path for v in model.weights} else frozenset(saved)


def teacher_targets(config: Config, data: Datasets) -> np.ndarray | None:
    """Return the training labels beside the teacher's logits; None without a teacher.

    Raises:
        UserError: the teacher cannot be loaded, or reads other inputs.
    """
    section = config.regularization.distillation
    if section is None:
        return None
    try:
        teacher = load_run(section.teacher)
    except UserError as error:
        raise UserError(f"regularization.distillation.teacher: {error}") from None
    if teacher.inputs.columns != config.columns:
        raise UserError("regularization.distillation.teacher: reads rows of another kind")
    console.log(f"distillation: {section.teacher} predicts {len(data.train):,} rows")
    # Raw rows, not token ids: the teacher has a tokenizer of its own.
    logits = teacher.logits([data.train.raw_row(position) for position in range(len(data.train))])
    return distillation.targets(data.train.targets, logits, teacher.labels, data.labels)


def apply_remat(config: Config, model: Model, backbone: Backbone) -> None:
    """Rematerialise the activations of the stages in `train.remat`.

    Raises:
        UserError: there is no such stage, or it holds no whole layer.
    """
    setting = config.train.remat
    if not setting:
        return
    if config.regularization.adversarial is not None:
        raise UserError("train.remat: does not go with regularization.adversarial")
    by_name = {stage.name: stage for stage in stages(backbone, model)}
    # The head holds few activations: to recompute it gains nothing.
    names = [name for name in by_name if name != "head"] if setting is True else setting
    for name in names:
        if name not in by_name:
            raise UserError(f"train.remat: no stage {name!r}{nearest(name, by_name)}")
    layers = rematerialise(model, [by_name[name] for name in names])
    if not layers:
        raise UserError(f"train.remat: {', '.join(names)}: no layer lies wholly in these stages")
    console.log(f"remat: {', '.join(layers)}")


def check_metric(config: Config, data: Datasets) -> None:
    """Check that the metric of the best checkpoint exists for this number of classes.

    Raises:
        UserError: it does not, such as the top-5 accuracy of five classes.
    """
    task, metric = TASKS[config.task.name], config.train.metric
    # One row yields the names of the task's metrics before anything is trained.
    row = data.train.take(np.zeros(1, np.int64))
    fitted = task.fit_targets(config.task, data.train.targets)
    empty = task.records(row, len(data.labels), fitted).merged()
    metrics = task.metrics(empty, row.targets, fitted)
    if metric not in metrics:
        raise UserError(
            f"train.metric: {config.task.name} of {len(data.labels)} {data.train.kind.noun} has "
            f"{', '.join(metrics)}. Received: {metric!r}"
        )


def check_tokens(config: Config, backbone: Backbone, inputs: preprocess.TextInputs) -> None:
    """Check that the embeddings have a row for every token id and every position.

    Raises:
        UserError: they do not.
    """
    # An image backbone beside it has tables of positions.
    weights = [v for v in backbone.model.weights if not v.path.startswith("image/")]
    tables = [v.shape[0] for v in weights if v.path.endswith("embeddings")]
    if tables and inputs.vocabulary_size > max(tables):
        key = "model.text" if len(config.model.towers) > 1 else "model"
        raise UserError(
            f"{key}.backbone: the tokenizer has {inputs.vocabulary_size:,} tokens, the embeddings "
            f"{max(tables):,}: the files are of two different models"
        )
    # `auto` is not resolved yet, and resolves to methods without positions of their own.
    method = METHODS.get(config.method.name)
    taken = method.positions(config.method) if method is not None else 0
    limit = backbone.max_length
    if limit is not None and inputs.max_length + taken > limit:
        detail = f", of which method {config.method.name} takes {taken}" if taken else ""
        raise UserError(
            f"data.max_length: the backbone has positions for {limit} tokens{detail}. "
            f"Received: {inputs.max_length}"
        )
