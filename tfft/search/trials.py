"""One trial: its runs as processes, their outcome, and the files of it that stay on disk."""

import json
import math
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tfft.config import Config, Fraction, dump
from tfft.search.fork_server import ForkServer
from tfft.search.space import Space
from tfft.utils.errors import UserError
from tfft.utils.files import write_atomic

MAX_REPEATED_DEATHS = 2  # by a signal, at the step of the death before, until a run has failed
GRACE_SECONDS = 30.0  # seconds between asking a run to stop and killing it
POLL_SECONDS = 0.2  # seconds between two polls of a process
# 97.5 % quantile of Student's t for 1 to 9 degrees of freedom.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass
class Outcome:
    """The result of a trial or a run.

    Attributes:
        status: COMPLETED, also for a trial that is paused; or FAILED.
        score: objective, averaged over the seeds.
        low, high: 95 % interval of the score: over the seeds, or, of a single run, over the
            validation rows.
        epochs: epochs trained so far.
        seconds: duration of this part of the trial.
        reason: reason of a failure, in one line.
        curve: step and score of each validation of the first seed.
        metrics: metrics of the evaluated splits by name.
        cut: whether the time limit of the search stopped the trial; with more time it resumes.
    """

    status: str
    score: float | None = None
    low: float | None = None
    high: float | None = None
    epochs: int = 0
    seconds: float = 0.0
    reason: str | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    cut: bool = False

    def to_json(self) -> str:
        """Return the outcome as JSON; `Outcome(**json.loads(text))` restores it."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Runner:
    """Runs trials below a directory.

    Attributes:
        space: search space that turns values into configs.
        workdir: directory of the search.
        objective: name of a metric of the validation split.
        maximize: whether a higher objective is better.
        seeds: number of runs per trial, each with another seed.
        environment: environment variables of the runs, such as the GPU that they may use.
        fork_server: server that starts the runs; runners may share it.
    """

    space: Space
    workdir: Path
    objective: str
    maximize: bool
    seeds: int
    environment: Mapping[str, str] = field(default_factory=dict)
    fork_server: ForkServer = field(default_factory=ForkServer)

    def trial_folder(self, trial: str) -> Path:
        """Return the directory of a trial."""
        return self.workdir / "trials" / trial

    def run_trial(
        self, name: str, values: Mapping[str, Any], epochs: int, should_stop: Callable[[], bool]
    ) -> Outcome:
        """Train all seeds of a trial up to `epochs`; finished training is not repeated.

        Args:
            name: id of the trial in whose directory the runs are.
            values: values of the search space by name.
            epochs: epochs at which the runs stop.
            should_stop: polled during the run; when it returns True the runs save and stop.
        """
        start = time.monotonic()
        try:
            config = self.space.config(values)
        except UserError as error:
            return Outcome("FAILED", reason=str(error).replace("\n", "; "))
        outcomes: list[Outcome] = []
        for seed in range(self.seeds):
            run_config = self.config(config, config.train.seed + seed)
            outcome = self.run(
                run_config, self.trial_folder(name) / f"seed_{seed}", epochs, should_stop
            )
            if outcome.status == "FAILED":
                outcome.seconds = time.monotonic() - start
                return outcome
            outcomes.append(outcome)
        return _mean_outcome(outcomes, time.monotonic() - start)

    def config(self, config: Config, seed: int, test: bool = False) -> Config:
        """Return the config of one run, without export, baselines and, by default, the test split.

        All seeds hold out the same validation rows.

        Args:
            config: config of the trial.
            seed: training seed.
            test: whether to keep the test split, which trials never see.
        """
        data = config.data if test else config.data.model_copy(update={"test": None})
        # By default the split takes the run's seed, which differs between the runs of a trial.
        if isinstance(data.validation, Fraction) and data.validation.seed is None:
            update = {"seed": self.space.plain.train.seed}
            fraction = data.validation.model_copy(update=update)
            data = data.model_copy(update={"validation": fraction})
        train = config.train.model_copy(update={"seed": seed, "metric": self.objective})
        return config.model_copy(
            update={
                "data": data,
                "train": train,
                "export": config.export.model_copy(update={"enabled": False}),
                "evaluate": config.evaluate.model_copy(update={"baselines": False}),
                "tune": None,
            }
        )

    def run(
        self, config: Config, workdir: Path, epochs: int, should_stop: Callable[[], bool]
    ) -> Outcome:
        """Train one config up to `epochs` in a separate process."""
        workdir.parent.mkdir(parents=True, exist_ok=True)
        path = workdir.with_name(f"{workdir.name}.yaml")
        write_atomic(path, dump(config))
        job = {
            "verb": "train",
            "config": str(path),
            "workdir": str(workdir),
            "epochs": epochs if epochs < config.train.epochs else None,
        }
        start, deaths, previous_step = time.monotonic(), 0, -1
        # Run again while a signal ends it and it makes progress.
        while True:
            code, log = self._process(job, workdir, should_stop)
            if code >= 0 or should_stop():
                break
            # A signal ended the run, perhaps through no fault of the config: resume while it makes
            # progress between two deaths.
            step = _newest_step(workdir)
            deaths = deaths + 1 if step == previous_step else 0
            previous_step = step
            if deaths >= MAX_REPEATED_DEATHS:
                break
        outcome = self._outcome(code, log, workdir, config, epochs, should_stop())
        outcome.seconds = time.monotonic() - start
        return outcome

    def _process(
        self, job: Mapping[str, Any], workdir: Path, should_stop: Callable[[], bool]
    ) -> tuple[int, Path]:
        log = workdir.with_name(f"{workdir.name}.log")
        process = self.fork_server.start(job, log, self.environment)
        try:
            while process.poll() is None and not should_stop():
                time.sleep(POLL_SECONDS)
            if process.poll() is None:
                process.terminate()  # the run saves a checkpoint and exits with 3
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE_SECONDS)
        finally:
            if process.poll() is None:  # it ignored SIGTERM, or an exception ends this thread
                process.kill()
        return process.wait(), log

    def _outcome(
        self, code: int, log: Path, workdir: Path, config: Config, epochs: int, stopped: bool
    ) -> Outcome:
        metric = f"validation/{self.objective}"
        entries = _entries(workdir / "metrics.jsonl")
        curve = [(int(e["step"]), float(e[metric])) for e in entries if metric in e]
        # All epochs are done: the run was evaluated.
        if code == 0:
            metrics = json.loads((workdir / "metrics.json").read_text())
            low, high = metrics.get(f"{metric}/low"), metrics.get(f"{metric}/high")
            score, full_epochs = metrics[metric], config.train.epochs
            if not math.isfinite(score):
                return Outcome("FAILED", reason=f"{metric} is {score}", curve=curve)
            return Outcome("COMPLETED", score, low, high, full_epochs, 0.0, None, curve, metrics)
        # Stopped at the epochs of a rung or by the time limit: the best validation so far counts.
        if (code == 3 or stopped) and curve:
            best = (max if self.maximize else min)(value for _, value in curve)
            epochs_done = int(entries[-1]["epoch"])
            cut, metrics = stopped and epochs_done < epochs, {metric: best}
            return Outcome(
                "COMPLETED", best, epochs=epochs_done, curve=curve, metrics=metrics, cut=cut
            )
        if stopped:
            reason = "stopped by the time limit before the first validation"
            return Outcome("FAILED", reason=reason, cut=True)
        return Outcome("FAILED", reason=_reason(code, log), curve=curve)

    def prune(self, keep: set[str]) -> None:
        """Delete the weights of all trials except `keep`; their metrics and logs stay."""
        for trial_folder in (self.workdir / "trials").glob("*"):
            if trial_folder.name in keep or not trial_folder.is_dir():
                continue
            for subfolder in ("best", "checkpoints", "export", "soup"):
                for path in trial_folder.glob(f"seed_*/{subfolder}"):
                    shutil.rmtree(path, ignore_errors=True)


def _mean_outcome(outcomes: Sequence[Outcome], seconds: float) -> Outcome:
    """Return the mean outcome over the seeds."""
    first = outcomes[0]
    if len(outcomes) == 1:
        first.seconds = seconds
        return first
    mean, low, high = interval([outcome.score for outcome in outcomes if outcome.score is not None])
    epochs = min(outcome.epochs for outcome in outcomes)
    cut = any(outcome.cut for outcome in outcomes)
    curve, metrics = first.curve, first.metrics
    return Outcome("COMPLETED", mean, low, high, epochs, seconds, None, curve, metrics, cut)


def interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Return the mean of a few values and the bounds of its 95 % interval by Student's t.

    The bounds are None for a single value.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None, None
    # T_95 begins at one degree of freedom, that of two values.
    factor = T_95[len(values) - 2] if len(values) <= len(T_95) + 1 else 1.96
    half_width = factor * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, mean - half_width, mean + half_width


def _entries(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:  # incomplete: the process was killed while writing
            break
    return entries


def _newest_step(workdir: Path) -> int:
    names = [p.name.removeprefix("step_") for p in (workdir / "checkpoints").glob("step_*")]
    return max((int(n) for n in names if n.isdigit()), default=0)


def _reason(code: int, log: Path) -> str:
    """Return in one line why a process ended with `code`."""
    if code < 0:
        name = signal.Signals(-code).name
        memory = "; most likely the machine ran out of memory" if code == -signal.SIGKILL else ""
        return f"killed repeatedly by {name}{memory}"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("tfft: ") for line in lines if line.startswith("tfft: ")]
    if code == 2 and errors:
        return errors[-1]
    return f"exit code {code}: {lines[-1][:300] if lines else 'no output'} (see {log})"
