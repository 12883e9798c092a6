"""The road of one run: config -> backbone -> inputs -> data -> head -> method -> mask ->
optimizer -> fit -> evaluate -> export. Read `run` from top to bottom."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import yaml

from tfft import (
    backbones,
    callbacks,
    distribute,
    evaluate,
    log,
    masks,
    optim,
    preprocess,
    report,
)
from tfft import model as model_room
from tfft.checkpoints import Checkpoints, State
from tfft.config import Config, dump, load, parse
from tfft.data import Datasets, batches, build
from tfft.errors import Interrupted, UserError, require
from tfft.evaluate import Evaluation
from tfft.methods import METHODS
from tfft.run import Run, load_run
from tfft.spec import Backbone, Mask, Rule
from tfft.tasks import TASKS


def run(config: Config, workdir: Path) -> Run:
    """Fine-tune as configured; everything that is found out stands in `workdir`.

    The same config in the same directory goes on at the last checkpoint, or returns the finished
    run.

    Raises:
        UserError: something that the user can mend.
        Interrupted: SIGINT or SIGTERM; the state is saved.
    """
    open_workdir(config, workdir)
    if (workdir / "metrics.json").is_file():
        log.say(f"{workdir}: this run is finished; nothing to do")
        return load_run(workdir)
    if config.train.tensorboard:
        require("tensorboard", "tensorboard")

    strategy = distribute.setup(config.distribute, config.train.seed)  # devices, seeds
    task = TASKS[config.task.name]
    with strategy.scope():  # every variable is born here
        backbone = backbones.load(config.model, config.distribute.precision)
        inputs = preprocess.load(config.model, config.data)  # the tokenizer: host and graph
        check_vocabulary(backbone, inputs)
        data = build.build(config.data, inputs, config.train.seed, stored_labels(backbone))
        plan = Plan.make(config, data)
        model = model_room.assemble(backbone, task, config.task, data.labels)
        mask = decide_mask(config, model, backbone)
        optimizer = optim.build(config.optimizer, mask, plan.per_epoch, plan.total)
        model.compile(optimizer, task.loss(config.task), jit_compile=False)
        optimizer.build(model.trainable_variables)
    result = Run(workdir, config, model, backbone, inputs, data.labels)
    result.datasets = data
    describe(result, data, mask)

    keep = Checkpoints(workdir / "checkpoints", config.train.checkpoint.keep)
    state = keep.restore(model)  # 1. this run's checkpoint  2. the pretrained weights
    fit(result, data, plan, state, keep)
    result.load_weights()  # the best of the run, not the last

    evaluations = {
        name: result.evaluate_on(split, config.evaluate, data.train)
        for name in ("validation", "test")
        if (split := getattr(data, name)) is not None
    }
    for name, evaluation in evaluations.items():
        log.say(evaluate.text(evaluation, name, config.evaluate.confidence))
    exported = result.export() if config.export.enabled else None
    report.write(workdir, config, state.history, evaluations, masks.table(mask), data, exported)
    finish(result, evaluations, state)
    return result


def preview(config: Config) -> str:
    """The mask table and the memory estimate of a config, as text; trains nothing."""
    backbone = backbones.load(config.model, config.distribute.precision)
    inputs = preprocess.load(config.model, config.data)
    check_vocabulary(backbone, inputs)
    data = build.build(config.data, inputs, config.train.seed, stored_labels(backbone))
    Plan.make(config, data)
    task = TASKS[config.task.name]
    model = model_room.assemble(backbone, task, config.task, data.labels)
    mask = decide_mask(config, model, backbone)
    return f"{masks.table(mask)}\n\n{memory(config, mask)}"


def memory(config: Config, mask: Mask) -> str:
    """Bytes that weights, gradients and the optimizer take, exactly; activations come on top."""
    total, moving = masks.parameters(mask)
    slots = {"adamw": 2, "adam": 2, "sgd": int(config.optimizer.momentum > 0)}
    parts = {
        "weights": total,
        "gradients": moving,
        "optimizer": moving * slots[config.optimizer.name],
    }
    shown = ", ".join(f"{name} {4 * count / 2**20:,.0f} MiB" for name, count in parts.items())
    return f"memory: {shown}; activations come on top, with the batch and its length"


@dataclass(frozen=True)
class Plan:
    """The batches of a training.

    Attributes:
        buckets: the widths that batches are padded to.
        per_epoch: steps of an epoch; `total` of the whole training.
    """

    buckets: tuple[int, ...]
    per_epoch: int
    total: int

    @classmethod
    def make(cls, config: Config, data: Datasets) -> "Plan":
        """Choose the widths for the lengths that there are, and say what they cost."""
        train = config.train
        buckets = batches.widths(data.train.lengths, train.buckets)
        first = batches.plan(data.train.lengths, train.batch_size, buckets, train.seed, 0)
        share = batches.padding_share(data.train.lengths, first)
        log.say(
            f"batches: {len(first):,} an epoch, widths {', '.join(map(str, buckets))}, "
            f"{share:.1%} padding"
        )
        return cls(buckets, len(first), len(first) * train.epochs)


def fit(result: Run, data: Datasets, plan: Plan, state: State, keep: Checkpoints) -> None:
    """Train from `state` to the end of the plan, through `keras.Model.fit`.

    Raises:
        Interrupted: a signal came; the state is saved.
    """
    config, model = result.config, result.model
    if state.step:
        log.say(f"resuming at step {state.step:,} of {plan.total:,}")
    if state.step >= plan.total or state.stopped:
        return
    if state.best is None:
        result.save()  # best/ is whole from here on; a resumed run's may be better than now
    with callbacks.Interrupt(state, keep) as interrupt:
        watchers = [*_watchers(result, data, plan, state, keep), interrupt]
        # An epoch that was begun is finished first: Keras counts whole epochs.
        begun = state.step % plan.per_epoch
        if begun:
            _fit_epochs(result, data, plan, state, watchers, plan.per_epoch - begun, 1)
        rest = config.train.epochs - state.step // plan.per_epoch
        if rest and not (interrupt.asked or state.stopped):
            _fit_epochs(result, data, plan, state, watchers, plan.per_epoch, rest)
        if interrupt.asked and state.step < plan.total and not state.stopped:
            raise Interrupted(
                f"interrupted at step {state.step:,} of {plan.total:,}, which is saved; the same "
                f"command with --workdir={result.workdir} goes on"
            )
    if state.best is None:  # no validation split: the last weights are the best there are
        result.save_weights()
    model.stop_training = False


def _fit_epochs(
    result: Run,
    data: Datasets,
    plan: Plan,
    state: State,
    watchers: list[keras.callbacks.Callback],
    steps: int,
    epochs: int,
) -> None:
    train, first = result.config.train, state.step // plan.per_epoch
    ahead = [
        batch
        for epoch in range(first, first + epochs)
        for batch in batches.plan(
            data.train.lengths, train.batch_size, plan.buckets, train.seed, epoch
        )
    ][state.step % plan.per_epoch :]
    weights = result.task.sample_weights(result.config.task, data.labels, data.train.labels)
    source = batches.dataset(data.train, ahead, result.inputs.pad_id, weights)
    result.model.fit(
        source,
        epochs=first + epochs,
        initial_epoch=first,
        steps_per_epoch=steps,
        callbacks=watchers,
        verbose=0,
        shuffle=False,
    )


def _watchers(
    result: Run, data: Datasets, plan: Plan, state: State, keep: Checkpoints
) -> list[keras.callbacks.Callback]:
    """The callbacks in their order: count first; save after all that changes the state."""
    train = result.config.train
    history = callbacks.History(state, result.workdir / "metrics.jsonl", plan.per_epoch)
    watchers = [
        callbacks.Counter(state),
        callbacks.NonFinite(state),
        callbacks.Progress(state, plan.per_epoch, plan.total, train.batch_size),
        history,
    ]
    if data.validation is not None:
        early = train.early_stopping
        watchers.append(
            callbacks.Validate(
                state,
                history,
                partial(_validation_figures, result, data),
                result.save_weights,
                train.metric,
                train.validate_every.steps(plan.per_epoch, plan.total),
                plan.total,
                early.patience if early else None,
                early.min_delta if early else 0.0,
            )
        )
    every = train.checkpoint.every.steps(plan.per_epoch, plan.total)
    watchers.append(callbacks.Save(state, keep, every, plan.total))
    if train.tensorboard:
        watchers += callbacks.tensorboard(result.workdir / "tensorboard")
    return watchers


def _validation_figures(result: Run, data: Datasets) -> dict[str, float]:
    split = data.validation
    size = result.config.evaluate.batch_size
    logits = evaluate.predict(result.model, split, result.inputs, size)
    return result.task.metrics(logits, split.labels)


def decide_mask(config: Config, model: keras.Model, backbone: Backbone) -> Mask:
    """The config's own rules first, then the method's."""
    stages = model_room.stages(backbone, model)
    own = tuple(Rule(r.match, r.trainable, r.learning_rate) for r in config.mask)
    rules = METHODS[config.method.name].apply(stages, config.method)
    return masks.apply(model, stages, own + rules)


def stored_labels(backbone: Backbone) -> tuple[str, ...] | None:
    """The labels of a head that came with the checkpoint."""
    return backbone.head.labels if backbone.head is not None else None


def check_vocabulary(backbone: Backbone, inputs: preprocess.TextInputs) -> None:
    """The tokenizer must not give ids that the embeddings lack.

    Raises:
        UserError: it does; the files are of two different models.
    """
    tables = [v.shape[0] for v in backbone.model.weights if v.path.endswith("embeddings")]
    if tables and inputs.vocabulary_size > max(tables):
        raise UserError(
            f"model.backbone: the tokenizer has {inputs.vocabulary_size:,} tokens, the embeddings "
            f"{max(tables):,}: the files are of two different models"
        )
    limit = backbone.max_length
    if limit is not None and inputs.max_length > limit:
        raise UserError(
            f"data.max_length: the backbone has positions for {limit} tokens; "
            f"received {inputs.max_length}"
        )


def open_workdir(config: Config, workdir: Path) -> None:
    """Create the run directory, or check that it is this config's.

    `describe` writes the config there, once data and model are known to be good: a mistake found
    before that leaves an empty folder, which the mended config may use.

    Raises:
        UserError: it holds a run of another config, or something that is no run.
    """
    path, text = workdir / "config.yaml", dump(config)
    if path.is_file():
        changed = _differences(yaml.safe_load(path.read_text("utf-8")), yaml.safe_load(text))
        if changed:
            raise UserError(
                f"{workdir}: holds a run with another config ({'; '.join(changed[:5])}); "
                "choose another --workdir"
            )
        return
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir}: is a file; --workdir must be a folder")
    if workdir.is_dir() and any(workdir.iterdir()):
        raise UserError(f"{workdir}: is not empty and holds no run; choose another --workdir")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{workdir}: cannot be written: {error.strerror}") from None


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [d for k in keys for d in _differences(old.get(k), new.get(k), f"{path}.{k}")]
    return [] if old == new else [f"{path.lstrip('.')}: {old!r} there, {new!r} here"]


def describe(result: Run, data: Datasets, mask: Mask) -> None:
    """Write `config.yaml`, `mask.txt`, `run.json` and `bad_rows.txt`, and show the mask."""
    write_atomic(result.workdir / "config.yaml", dump(result.config))
    table = masks.table(mask)
    log.say(table)
    write_atomic(result.workdir / "mask.txt", table + "\n")
    packages = ("tensorflow", "keras", "transformers", "tokenizers", "tensorflow-text", "numpy")
    facts = {
        "versions": {"tfft": version("tfft"), **{name: version(name) for name in packages}},
        "python": platform.python_version(),
        "device": distribute.report(),
        "git": _git_commit(),
        "backbone": result.backbone.fingerprint,
        "data": {
            "train": data.train.prepared.folder.name,
            "rows": {
                name: len(split)
                for name in ("train", "validation", "test")
                if (split := getattr(data, name)) is not None
            },
            "labels": list(data.labels),
        },
        "command": sys.argv,
    }
    write_atomic(result.workdir / "run.json", json.dumps(facts, indent=1, ensure_ascii=False))
    if data.bad_rows:
        write_atomic(result.workdir / "bad_rows.txt", "\n".join(data.bad_rows) + "\n")


def finish(result: Run, evaluations: dict[str, Evaluation], state: State) -> None:
    """Write `metrics.json`, which also says that the run is done."""
    figures: dict[str, float] = {"steps": state.step, "best_step": state.best_step or state.step}
    for name, evaluation in evaluations.items():
        figures |= evaluation.flat(name)
    write_atomic(result.workdir / "metrics.json", json.dumps(figures, indent=1))
    log.say(f"done: {result.workdir / 'report.html'}")


def write_atomic(path: Path, text: str) -> None:
    """To a temporary name, then renamed."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _git_commit() -> str | None:
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


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
            tfft.errors.UserError: something to mend, one line a mistake.
        """
        if isinstance(config, Mapping):
            return run(parse(config, changes=overrides), Path(workdir or "runs/tfft"))
        parsed = load(config, changes=overrides)
        return run(parsed, Path(workdir or f"runs/{Path(config).stem}"))


sys.modules[__name__].__class__ = _CallableModule
