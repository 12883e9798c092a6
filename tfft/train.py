"""The pipeline of one run, from a config to a served model. Read `run` from top to bottom.

config -> backbone -> inputs -> data -> head -> method -> mask -> optimizer -> fit -> evaluate ->
export
"""

import gc
import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from tfft import report
from tfft.config import Config, TrainConfig, load, parse
from tfft.data import Datasets, model_inputs
from tfft.distribute import strategies
from tfft.evaluation import evaluate
from tfft.model import masks
from tfft.run import Run, load_run
from tfft.training import advice, fingerprint, loop, memory, memory_estimate, run_directory, setup
from tfft.training.checkpoints import Checkpoints, TrainingState
from tfft.training.phases import TrainingSchedule
from tfft.utils import console
from tfft.utils.errors import require

_starts = itertools.count()  # of runs in this process


@memory.out_of_memory_errors()
def run(config: Config, workdir: Path, epochs: int | None = None) -> Run:
    """Fine-tune as configured and write the model, logs and report to `workdir`.

    The same config in the same directory resumes at the last checkpoint, or returns the finished
    run.

    Args:
        config: the config; `method: auto` is resolved here.
        workdir: the run directory.
        epochs: stop after this many of `train.epochs`, as if interrupted; a later call resumes.

    Raises:
        UserError: something that the user can fix.
        Interrupted: a signal or a file requested a stop, `epochs` are over, or another worker was
            lost; the state is saved.
    """
    with run_directory.locked(workdir), strategies.lost_worker_errors(workdir):
        _free_earlier_runs()
        workers = strategies.workers()  # several where TF_CONFIG says so; the first one writes
        console.quiet(not workers.is_chief)
        # Before the directory is opened, since the plain config is what it holds.
        config = advice.resolve(config, workdir)
        if workers.is_chief:
            run_directory.open_workdir(config, workdir)
        if (workdir / "metrics.json").is_file():
            console.log(f"{workdir}: this run is finished; nothing to do")
            return load_run(workdir)
        if config.train.tensorboard:
            require("tensorboard", "tensorboard")

        seed, train = config.train.seed, config.train
        # Seeds before anything is drawn, the strategy before any variable.
        strategy = strategies.setup(config.distribute, seed, train.deterministic)
        fingerprint.require_equal_on_workers(strategy, fingerprint.settings(config))
        with strategy.scope():  # all variables are created here
            result, data, plan, schedule = setup.prepare(config, workdir)
        checkpoints = Checkpoints(
            workdir / "checkpoints",
            train.checkpoint.keep,
            workers.is_chief,
            result.trained,
            result.depends_on,
        )
        # The last checkpoint of this run, or else the pretrained weights at step 0.
        state = checkpoints.restore(result.model)
        result.targets = setup.teacher_targets(config, data)
        if workers.is_chief:
            run_directory.describe(result, data, schedule)

        loop.fit(result, data, plan, schedule, state, checkpoints, epochs)
        result.load_weights()  # the best ones, not the last
        conclude(result, data, schedule, state)
        # A barrier: no worker returns before the run directory is complete.
        strategies.sum_over_workers(strategy, 0)
        return result


def _free_earlier_runs() -> None:
    """Free the model, the graphs and the data of earlier runs, which form cycles.

    A first run, such as that of a command or a trial, has none. The search for them takes time: it
    goes through the objects of all imported modules.
    """
    if next(_starts):
        gc.collect()


def conclude(result: Run, data: Datasets, schedule: TrainingSchedule, state: TrainingState) -> None:
    """Evaluate the best weights, export them and write the report."""
    config, workdir = result.config, result.workdir
    # Never on test rows: what is fitted, such as thresholds, is part of the model.
    result.fit(data.validation)
    evaluations = {
        name: result.evaluate_on(split, config.evaluate, data.train)
        for name in ("validation", "test")
        if (split := getattr(data, name)) is not None
    }
    # Evaluation is collective (above); export and report are the chief's.
    if not strategies.workers().is_chief:
        return
    # `republish`: a run that was killed after its export has published these weights already.
    exported = result.export(republish=False) if config.export.enabled else None
    images = report.PageImages()
    if "image" in config.reads:
        train_rows = model_inputs.augmented_rows(
            data.train, result.inputs, config.augmentation, len(data.labels), config.train.seed
        )
        images = report.build_page_images(
            result.model, result.inputs, data, train_rows, evaluations
        )
    table = mask_table(schedule)
    report.write(workdir, config, state.history, evaluations, table, data, exported, images)
    facts, totals = run_directory.read_facts(workdir), table.splitlines()[-1]
    report.model_card.write(workdir, config, facts, state, evaluations, totals)
    # Writes metrics.json, which marks the run as finished: last of all files.
    run_directory.finish(result, evaluations, state)
    if evaluations:
        console.log(evaluate.table(evaluations, config.evaluate.confidence))
    console.log(run_directory.contents(workdir, exported))


def preview(config: Config) -> str:
    """Return the mask table and the memory estimate of a config as text; train nothing."""
    # `prepare` does not write to the folder.
    result, _, plan, schedule = setup.prepare(config, Path("runs"))
    rows = _rows_at_once(config.train)
    width = plan.bucket_lengths[-1] if "text" in config.reads else None
    estimate = memory_estimate.step(result.model, rows, width)
    return f"{mask_table(schedule)}\n\n{memory_estimate.text(estimate, rows, width)}"


def mask_table(schedule: TrainingSchedule) -> str:
    """Return the mask of a schedule as text."""
    return masks.table(schedule.mask, schedule.starts)


def _rows_at_once(train: TrainConfig) -> int:
    """Return the rows that one device holds at once; all of the batch where that is `auto`."""
    micro_batch = train.micro_batch
    return min(micro_batch, train.batch_size) if isinstance(micro_batch, int) else train.batch_size


class _CallableModule(ModuleType):
    """Module type that makes `tfft.train(...)` callable beside `tfft.train.run`.

    `import tfft.train` binds the module to the name `tfft.train`, so a function of that name would
    depend on the order of imports.
    """

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
            tfft.utils.errors.UserError: something that the user can fix, one line for each mistake.
        """
        if isinstance(config, Mapping):
            return run(parse(config, changes=overrides), Path(workdir or "runs/tfft"))
        parsed = load(config, changes=overrides)
        return run(parsed, Path(workdir or f"runs/{Path(config).stem}"))


sys.modules[__name__].__class__ = _CallableModule
