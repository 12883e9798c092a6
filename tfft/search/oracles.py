"""KerasTuner's oracles, which say what to try next, with what they lack.

- The first trial is the one that is asked for.
- Nothing is lost: every event is a line of a journal, which is played back to a fresh oracle. (The
  grid and the Bayesian oracle do not save all of their state.)
- Trials that are behind are paused and may go on later (`Halving`).
- Wall-clock time ends the search.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras_tuner
from keras_tuner import HyperParameters, Objective, oracles
from keras_tuner.engine.trial import Trial, TrialStatus

from tfft.config import Halving, TuneConfig
from tfft.utils import console
from tfft.utils.errors import UserError, require
from tfft.utils.files import open_to_append
from tfft.utils.reading import library_errors

EPOCHS = "tuner/epochs"  # KerasTuner's name for how far a trial is trained
PARENT = "tuner/trial_id"  # the trial that this one goes on with
TRIALS = 20


class Journal:
    """The events of a search, a line each, on the disk before anything follows from them.

    Args:
        path: `journal.jsonl`.
    """

    def __init__(self, path: Path):
        self._path = path

    def read(self) -> Iterator[dict[str, Any]]:
        """The events so far; a last line that was cut off is taken away.

        Raises:
            UserError: another line is not as it was written.
        """
        if not self._path.is_file():
            return
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with open(self._path, "r+b") as file:
                file.truncate(len(whole))
        for number, line in enumerate(whole.splitlines(), 1):
            with library_errors(f"{self._path}:{number}: not an event"):
                event = json.loads(line)
            yield event

    def write(self, event: Mapping[str, Any]) -> None:
        """Append one."""
        with open_to_append(self._path) as file:
            file.write(json.dumps(event) + "\n")
            file.flush()
            os.fsync(file.fileno())


class Rungs:
    """Asynchronous successive halving over the trials of an oracle (Li 2020, algorithm 2).

    Args:
        config: factor and the first rung.
        epochs: of a whole trial.
        maximize: whether higher scores are better.
    """

    def __init__(self, config: Halving, epochs: int, maximize: bool):
        self.factor, self._maximize = config.factor, maximize
        self.levels = [epochs]
        low = config.min_epochs
        while low < epochs:
            self.levels.insert(-1, low)
            low *= config.factor
        # Score of each trial at each rung that it reached.
        self.scores: list[dict[str, float]] = [{} for _ in self.levels]

    def record(self, trial: str, epochs: int, score: float) -> None:
        """A trial came so far."""
        for level, scores in zip(self.levels, self.scores, strict=True):
            if level == epochs:
                scores[trial] = score

    def promotable(self, busy: set[str], last: bool) -> tuple[str, int] | None:
        """A paused trial that is among the best of its rung, and the epochs that it may go to.

        Args:
            busy: trials that run now, or failed.
            last: there are no new trials any more: the best of a rung goes on in any case.
        """
        for at in reversed(range(len(self.levels) - 1)):
            scores = self.scores[at]
            best = sorted(scores, key=lambda t: scores[t], reverse=self._maximize)
            count = len(best) // self.factor
            if last and best:
                count = max(1, count)
            for trial in best[:count]:
                if trial not in self.scores[at + 1] and trial not in busy:
                    return trial, self.levels[at + 1]
        return None


class _Kept(keras_tuner.Oracle):
    """What is added to an oracle; mixed in before one of KerasTuner's."""

    def prepare(
        self,
        journal: Journal,
        epochs: int,
        halving: Halving | None,
        trials: int | None,
        seconds: float | None,
        spent: float,
    ) -> None:
        """Set up, and play back what the journal holds.

        Args:
            epochs: of a whole trial.
            trials: at most.
            seconds: for the whole search, over all its starts.
            spent: seconds of it that were over before the journal began.
        """
        self.journal, self.epochs, self._most = journal, epochs, trials
        self.rungs = Rungs(halving, epochs, self.objective.direction == "max") if halving else None
        self.notes: dict[str, dict[str, Any]] = {}
        self.spent, self._limit, self._began = spent, seconds, time.monotonic()
        self._display.verbose = 0
        self._replay()

    # --- nothing but the journal is written ---

    def save(self) -> None:
        """Nothing: the journal holds it."""

    def _save_trial(self, trial: Trial) -> None:
        """Nothing: the journal holds it."""

    def _check_consecutive_failures(self) -> None:
        """Nothing: a space may hold many trials that fail. (An error here would keep KerasTuner's
        lock for ever.)"""

    # --- what to try ---

    def _random_values(self) -> dict[str, Any] | None:
        if self.trials or self._tried_so_far:
            return super()._random_values()
        hp = self.hyperparameters
        return {one.name: one.default for one in hp.space if _active(hp, one)}

    def _compute_values_hash(self, values: dict[str, Any]) -> str:
        own = {k: v for k, v in values.items() if not k.startswith("tuner/") or k == PARENT}
        return super()._compute_values_hash(own)

    @property
    def over(self) -> bool:
        """Whether the time is."""
        return self._limit is not None and self.elapsed >= self._limit

    @property
    def elapsed(self) -> float:
        """Seconds that the search took so far, over all its starts."""
        return self.spent + time.monotonic() - self._began

    @keras_tuner.synchronized
    def create_trial(self, tuner_id: str) -> Trial:
        """A new trial, a paused one that may go on, one that another worker lost; or IDLE (ask
        again), or STOPPED (there are no more)."""
        if tuner_id in self.ongoing_trials:
            return self.ongoing_trials[tuner_id]
        self.tuner_ids.add(tuner_id)
        if self.over and not self._replaying:
            self.tuner_ids.discard(tuner_id)
            return Trial(HyperParameters(), "", TrialStatus.STOPPED)
        lost = bool(self._retry_queue)  # what another worker lost comes first
        trial = self._promoted(tuner_id, last=False) if not lost else None
        if trial is None:
            trial = self._another(tuner_id, lost)
            if trial.status == TrialStatus.STOPPED and self.rungs is not None:
                trial = self._promoted(tuner_id, last=not self.ongoing_trials) or trial
            if trial.status == TrialStatus.STOPPED and self.ongoing_trials:
                # What runs now may fail, pause or be lost: then there is more to do.
                self.tuner_ids.add(tuner_id)
                return Trial(HyperParameters(), "", TrialStatus.IDLE)
        self.exhausted = trial.status == TrialStatus.STOPPED
        if trial.status == TrialStatus.RUNNING:
            values = trial.hyperparameters.values
            event = {"event": "create", "trial": trial.trial_id, "tuner": tuner_id}
            self._note({**event, "values": values})
        return trial

    def _another(self, tuner_id: str, lost: bool) -> Trial:
        """One that was lost or a new one; STOPPED where there are as many as there may be."""
        full = self._most is not None and len(self.trials) >= self._most
        if full and not lost and not self._replaying:
            return Trial(HyperParameters(), "", TrialStatus.STOPPED)
        trial: Trial = super().create_trial(tuner_id)
        if trial.status == TrialStatus.RUNNING and not lost and not self._sets_epochs:
            first = self.rungs.levels[0] if self.rungs is not None else self.epochs
            trial.hyperparameters.values[EPOCHS] = first
        return trial

    def _promoted(self, tuner_id: str, last: bool) -> Trial | None:
        if self.rungs is None or self._replaying:
            return None
        busy = {trial.trial_id for trial in self.ongoing_trials.values()}
        busy |= {name for name, t in self.trials.items() if t.status == TrialStatus.FAILED}
        found = self.rungs.promotable(busy, last)
        if found is None:
            return None
        return self._go_on(*found, tuner_id)

    def _go_on(self, name: str, epochs: int, tuner_id: str) -> Trial:
        trial = self.trials[name]
        trial.status = TrialStatus.RUNNING
        trial.hyperparameters.values[EPOCHS] = epochs
        self.ongoing_trials[tuner_id] = trial
        return trial

    # --- what came of it ---

    @keras_tuner.synchronized
    def end_trial(self, trial: Trial) -> None:
        """Take a trial's result; its notes are kept with it."""
        own = self.trials[trial.trial_id]
        if own.status != TrialStatus.RUNNING:
            return  # a worker that was thought lost came back: another one's result counts
        if trial.trial_id in self._retry_queue:  # it came back before another one began
            self._retry_queue.remove(trial.trial_id)
        notes = {} if trial.message is None else json.loads(trial.message)
        score = notes.get("score")
        if trial.status == TrialStatus.COMPLETED:
            self._scored(trial.trial_id, int(notes["epochs"]), float(score))
        before = self.notes.get(trial.trial_id, {}).get("seconds", 0.0)
        self.notes[trial.trial_id] = {**notes, "seconds": before + notes.get("seconds", 0.0)}
        trial.message = notes.get("reason")
        self._note(
            {"event": "end", "trial": trial.trial_id, "status": trial.status, "notes": notes}
        )
        super().end_trial(trial)

    def _scored(self, trial: str, epochs: int, score: float) -> None:
        # KerasTuner takes the best of all reports; the last one counts, also of one that went on.
        self.trials[trial].metrics.metrics.pop(self.objective.name, None)
        self.update_trial(trial, {self.objective.name: score}, step=epochs)
        if self.rungs is not None:
            self.rungs.record(trial, epochs, score)

    @contextmanager
    def running(self, trial_id: str) -> Iterator[None]:
        """Around a trial that this process runs."""
        yield

    @keras_tuner.synchronized
    def lose(self, tuner_id: str) -> None:
        """A worker is gone: its trial is given to the next that asks."""
        trial = self.ongoing_trials.pop(tuner_id, None)
        self.tuner_ids.discard(tuner_id)
        if trial is not None:
            self._retry_queue.append(trial.trial_id)
            self._note({"event": "lost", "trial": trial.trial_id, "tuner": tuner_id})

    def needed(self) -> set[str]:
        """Trials whose checkpoints are: they run, were lost, or may go on."""
        running = {trial.trial_id for trial in list(self.ongoing_trials.values())}
        return running | set(self._retry_queue) | self.waiting()

    def waiting(self) -> set[str]:
        """Trials that are paused and may go on."""
        if self.rungs is None:
            return set()
        reached = [set(scores) for scores in self.rungs.scores]
        return {trial for at, now in enumerate(reached[:-1]) for trial in now - reached[at + 1]}

    # --- the journal ---

    _replaying = False
    _sets_epochs = False
    exhausted = False  # there is nothing more to give, and nothing runs

    def _note(self, event: dict[str, Any]) -> None:
        if not self._replaying:
            self.journal.write({**event, "seconds": round(self.elapsed, 1)})

    def _replay(self) -> None:
        self._replaying = True
        for event in self.journal.read():
            self.spent = event["seconds"]
            if event["event"] == "create":
                self._created(event)
            elif event["event"] == "lost":
                self.lose(event["tuner"])
            elif not (event["notes"].get("cut") and self._more_time()):
                trial = self.trials[event["trial"]]
                trial = Trial.from_state(trial.get_state())
                trial.status, trial.message = event["status"], json.dumps(event["notes"])
                self.end_trial(trial)
        self.tuner_ids.clear()
        self._replaying = False
        self._began = time.monotonic()
        # The processes of those that ran are gone. The last that is lost is taken first.
        by_age = sorted(self.ongoing_trials, key=lambda t: self.ongoing_trials[t].trial_id)
        for tuner in reversed(by_age):
            self.lose(tuner)

    def _more_time(self) -> bool:
        """Whether what the time ended may go on, as it was raised since."""
        return self._limit is None or self.spent < self._limit

    def _created(self, event: dict[str, Any]) -> None:
        name, tuner = event["trial"], event["tuner"]
        if name in self.trials and name not in self._retry_queue:  # it was paused
            trial = self._go_on(name, event["values"][EPOCHS], tuner)
        else:
            trial = self.create_trial(tuner)
        if trial.status != TrialStatus.RUNNING or trial.trial_id != event["trial"]:
            raise UserError(
                "journal.jsonl: was written by another version of keras-tuner, which goes on "
                "otherwise; start anew with another --workdir"
            )
        if trial.hyperparameters.values != event["values"]:
            console.log(f"trial {trial.trial_id}: the oracle would take other values now; kept")
            trial.hyperparameters.values = event["values"]
            self._record_values(trial)


class _Random(_Kept, oracles.RandomSearchOracle):
    pass


class _Grid(_Kept, oracles.GridSearchOracle):
    pass


class _Hyperband(_Kept, oracles.HyperbandOracle):
    _sets_epochs = True

    def waiting(self) -> set[str]:
        """Those of a round whose next one is not full."""
        found: set[str] = set()
        for bracket in self._brackets:
            for at, later in enumerate(bracket["rounds"][1:]):
                if len(later) < self._get_size(bracket["bracket_num"], at + 1):
                    taken = {info["past_id"] for info in later}
                    found |= {info["id"] for info in bracket["rounds"][at]} - taken
        return found


class _Bayesian(_Kept, oracles.BayesianOptimizationOracle):
    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """KerasTuner's, but nothing twice: what was tried gives way to what is drawn."""
        found: dict[str, Any] = super().populate_space(trial_id)
        if found["values"] is not None and self._duplicate(found["values"]):
            return self._random_populate_space()
        return found


def make(
    config: TuneConfig,
    space: HyperParameters,
    objective: tuple[str, str],
    epochs: int,
    journal: Journal,
    spent: float = 0.0,
) -> Any:
    """The oracle of a search, where its journal left it.

    Args:
        space: whose defaults are the first trial.
        objective: a figure of the validation split, and `max` or `min`.
        epochs: of a whole trial.
        spent: seconds that the search took before its journal began.

    Raises:
        UserError: the Bayesian oracle is wanted without scikit-learn.
    """
    name, direction = objective
    common: dict[str, Any] = {
        "objective": Objective(name, direction),
        "hyperparameters": space,
        "seed": config.seed + 1,  # KerasTuner takes 0 for "any"
    }
    # The number of trials is not KerasTuner's to know: it writes it into their names.
    trials = config.trials
    if trials is None and config.time is None and config.oracle in ("random", "bayesian"):
        trials = TRIALS
    if config.oracle == "grid":
        oracle = _Grid(max_trials=None, **common)
    elif config.oracle == "hyperband":
        oracle = _Hyperband(max_epochs=epochs, factor=config.factor, **common)
    elif config.oracle == "bayesian":
        require("sklearn", "baselines")
        oracle = _Bayesian(max_trials=None, **common)
    else:
        oracle = _Random(max_trials=None, **common)
    seconds = config.time.seconds if config.time is not None else None
    oracle.prepare(journal, epochs, config.halving, trials, seconds, spent)
    return oracle


def root(oracle: Any, trial: Trial) -> str:
    """The trial whose run a trial goes on with; its own id where it begins one."""
    while (parent := trial.hyperparameters.values.get(PARENT)) is not None:
        trial = oracle.get_trial(parent)
    return str(trial.trial_id)


def _active(hp: HyperParameters, one: Any) -> bool:
    copy = hp.copy()
    copy.values = {o.name: o.default for o in hp.space}
    return bool(copy.is_active(one))
