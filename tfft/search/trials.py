"""One trial: its runs as processes, what came of them, what of it stays on the disk."""

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

AGAIN = 2  # times that a run goes on after a signal ended it without a step forward
GRACE = 30.0  # seconds between asking a run to stop and ending it
LOOK = 0.2  # seconds between two looks at a process
OF_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t, 1 to 9 d.f.


@dataclass
class Outcome:
    """What came of a trial or a run.

    Attributes:
        status: COMPLETED, also where it was paused on its way; or FAILED.
        score: the objective, the mean over the seeds.
        low, high: its 95 % interval: over the seeds, or of one run over the validation rows.
        epochs: trained so far.
        seconds: that this part took.
        reason: of a failure, one line.
        curve: step and score of each validation of the first seed.
        metrics: of the splits that were evaluated, by name.
        cut: whether the time of the search ended it; with more time it goes on.
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

    def text(self) -> str:
        """As JSON; `Outcome(**json.loads(text))` reads it back."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Runner:
    """Runs trials below a folder.

    Attributes:
        space: what their values mean.
        workdir: of the search.
        objective: a figure of the validation split.
        maximize: whether more of it is better.
        seeds: runs a trial.
        environment: of the processes, e.g. the GPU that they may use.
        nursery: where they come from; runners may share one.
    """

    space: Space
    workdir: Path
    objective: str
    maximize: bool
    seeds: int
    environment: Mapping[str, str] = field(default_factory=dict)
    nursery: ForkServer = field(default_factory=ForkServer)

    def folder(self, trial: str) -> Path:
        """Of the trial that began a run."""
        return self.workdir / "trials" / trial

    def trial(
        self, name: str, values: Mapping[str, Any], epochs: int, stopped: Callable[[], bool]
    ) -> Outcome:
        """Train all seeds of a trial up to `epochs`; what is trained already is not trained again.

        Args:
            name: of the trial whose runs these are.
            values: of the space.
            stopped: asked again and again; once it says so the runs stop and are saved.
        """
        began = time.monotonic()
        try:
            config = self.space.config(values)
        except UserError as error:
            return Outcome("FAILED", reason=str(error).replace("\n", "; "))
        found: list[Outcome] = []
        for seed in range(self.seeds):
            own = self.config(config, config.train.seed + seed)
            one = self.run(own, self.folder(name) / f"seed_{seed}", epochs, stopped)
            if one.status == "FAILED":
                one.seconds = time.monotonic() - began
                return one
            found.append(one)
        return _together(found, time.monotonic() - began)

    def config(self, config: Config, seed: int, test: bool = False) -> Config:
        """Of one run: without what only a finished model is for; the held-out rows are the same
        whatever the seed.

        Args:
            test: whether the test split is looked at, which trials never do.
        """
        data = config.data if test else config.data.model_copy(update={"test": None})
        if isinstance(data.validation, Fraction) and data.validation.seed is None:
            fixed = {"seed": self.space.plain.train.seed}
            fraction = data.validation.model_copy(update=fixed)
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
        self, config: Config, workdir: Path, epochs: int, stopped: Callable[[], bool]
    ) -> Outcome:
        """Train one config up to `epochs`, in a process of its own."""
        workdir.parent.mkdir(parents=True, exist_ok=True)
        path = workdir.with_name(f"{workdir.name}.yaml")
        write_atomic(path, dump(config))
        job = {
            "verb": "train",
            "config": str(path),
            "workdir": str(workdir),
            "epochs": epochs if epochs < config.train.epochs else None,
        }
        began, tries, before = time.monotonic(), 0, -1
        while True:
            code, log = self._process(job, workdir, stopped)
            if code >= 0 or stopped():
                break
            step = _newest_step(workdir)  # a signal ended it: perhaps not its own fault
            tries = tries + 1 if step == before else 0
            before = step
            if tries >= AGAIN:
                break
        one = self._outcome(code, log, workdir, config, epochs, stopped())
        one.seconds = time.monotonic() - began
        return one

    def _process(
        self, job: Mapping[str, Any], workdir: Path, stopped: Callable[[], bool]
    ) -> tuple[int, Path]:
        log = workdir.with_name(f"{workdir.name}.log")
        process = self.nursery.start(job, log, self.environment)
        try:
            while process.poll() is None and not stopped():
                time.sleep(LOOK)
            if process.poll() is None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)
        finally:
            if process.poll() is None:  # it does not listen, or this thread is ended
                process.kill()
        return process.wait(), log

    def _outcome(
        self, code: int, log: Path, workdir: Path, config: Config, epochs: int, stopped: bool
    ) -> Outcome:
        name = f"validation/{self.objective}"
        entries = _entries(workdir / "metrics.jsonl")
        curve = [(int(e["step"]), float(e[name])) for e in entries if name in e]
        if code == 0:
            metrics = json.loads((workdir / "metrics.json").read_text())
            low, high = metrics.get(f"{name}/low"), metrics.get(f"{name}/high")
            score, whole = metrics[name], config.train.epochs
            if not math.isfinite(score):
                return Outcome("FAILED", reason=f"{name} is {score}", curve=curve)
            return Outcome("COMPLETED", score, low, high, whole, 0.0, None, curve, metrics)
        if (code == 3 or stopped) and curve:
            best = (max if self.maximize else min)(value for _, value in curve)
            done = int(entries[-1]["epoch"])
            cut, metrics = stopped and done < epochs, {name: best}
            return Outcome("COMPLETED", best, epochs=done, curve=curve, metrics=metrics, cut=cut)
        if stopped:
            reason = "the time was over before its first validation"
            return Outcome("FAILED", reason=reason, cut=True)
        return Outcome("FAILED", reason=_reason(code, log), curve=curve)

    def prune(self, kept: set[str]) -> None:
        """Take the weights of all trials but these from the disk; what was found out stays."""
        for folder in (self.workdir / "trials").glob("*"):
            if folder.name in kept or not folder.is_dir():
                continue
            for heavy in ("best", "checkpoints", "export", "soup"):
                for found in folder.glob(f"seed_*/{heavy}"):
                    shutil.rmtree(found, ignore_errors=True)


def _together(found: Sequence[Outcome], seconds: float) -> Outcome:
    """The mean over the seeds."""
    first = found[0]
    if len(found) == 1:
        first.seconds = seconds
        return first
    mean, low, high = interval([one.score for one in found if one.score is not None])
    epochs, cut = min(one.epochs for one in found), any(one.cut for one in found)
    curve, metrics = first.curve, first.metrics
    return Outcome("COMPLETED", mean, low, high, epochs, seconds, None, curve, metrics, cut)


def interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """The mean of a few values and its 95 % interval by Student's t; none of one value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None, None
    factor = OF_95[len(values) - 2] if len(values) <= len(OF_95) + 1 else 1.96
    half = factor * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def _entries(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:  # cut off as the process was killed
            break
    return found


def _newest_step(workdir: Path) -> int:
    names = [p.name.removeprefix("step_") for p in (workdir / "checkpoints").glob("step_*")]
    return max((int(n) for n in names if n.isdigit()), default=0)


def _reason(code: int, log: Path) -> str:
    """Why a process ended, in a line."""
    if code < 0:
        name = signal.Signals(-code).name
        memory = "; most likely the machine ran out of memory" if code == -signal.SIGKILL else ""
        return f"ended by {name} again and again{memory}"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    said = [line.removeprefix("tfft: ") for line in lines if line.startswith("tfft: ")]
    if code == 2 and said:
        return said[-1]
    return f"exit code {code}: {lines[-1][:300] if lines else 'nothing was said'} (see {log})"
