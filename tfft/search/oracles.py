"""KerasTuner's oracles, which choose the next trial, with what a long search needs besides.

- The first trial takes given values.
- No result is lost: each event is a line of a journal, which is replayed into a fresh oracle. (The
  grid and the Bayesian oracle do not save all of their state.)
- Weak trials are paused and may continue later (`Halving`).
- A wall-clock limit ends the search.
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

EPOCHS = "tuner/epochs"  # KerasTuner's key for the epochs of a trial
PARENT = "tuner/trial_id"  # KerasTuner's key for the trial that a trial continues
TRIALS = 20  # trials of a search that sets neither trials nor time


class Journal:
    """The events of a search, one per line, written to disk before the search acts on them.

    Args:
        path: `journal.jsonl`.
    """

    def __init__(self, path: Path):
        self._path = path

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the events so far; truncate a last line that is incomplete after a crash.

        Raises:
            UserError: another line is not an event.
        """
        if not self._path.is_file():
            return
        data = self._path.read_bytes()
        complete_lines = data[: data.rfind(b"\n") + 1]
        if len(complete_lines) < len(data):
            with open(self._path, "r+b") as file:
                file.truncate(len(complete_lines))
        for number, line in enumerate(complete_lines.splitlines(), 1):
            with library_errors(f"{self._path}:{number}: not an event"):
                event = json.loads(line)
            yield event

    def write(self, event: Mapping[str, Any]) -> None:
        """Append an event and flush it to the disk."""
        with open_to_append(self._path) as file:
            file.write(json.dumps(event) + "\n")
            file.flush()
            os.fsync(file.fileno())


class Rungs:
    """Asynchronous successive halving over the trials of an oracle (Li 2020, algorithm 2).

    Args:
        config: reduction factor and epochs of the first rung.
        epochs: epochs of a full trial.
        maximize: whether higher scores are better.
    """

    def __init__(self, config: Halving, epochs: int, maximize: bool):
        self.factor, self._maximize = config.factor, maximize
        self.levels = [epochs]
        level = config.min_epochs
        while level < epochs:
            self.levels.insert(-1, level)
            level *= config.factor
        # Score of each trial at each rung that it reached.
        self.scores: list[dict[str, float]] = [{} for _ in self.levels]

    def record(self, trial: str, epochs: int, score: float) -> None:
        """Record the score of a trial that reached `epochs` epochs."""
        for level, scores in zip(self.levels, self.scores, strict=True):
            if level == epochs:
                scores[trial] = score

    def promotable(self, busy: set[str], last: bool) -> tuple[str, int] | None:
        """Return a paused trial among the best of its rung, and the epochs of the next rung.

        Args:
            busy: ids of trials that run or have failed.
            last: whether no new trials will come; then the best trial of a rung is always promoted.
        """
        for rung in reversed(range(len(self.levels) - 1)):
            scores = self.scores[rung]
            best = sorted(scores, key=lambda t: scores[t], reverse=self._maximize)
            count = len(best) // self.factor
            if last and best:
                count = max(1, count)
            for trial in best[:count]:
                if trial not in self.scores[rung + 1] and trial not in busy:
                    return trial, self.levels[rung + 1]
        return None


class _JournaledOracle(keras_tuner.Oracle):
    """The additions to an oracle; precedes one of KerasTuner's oracle classes as a base class."""

    def prepare(
        self,
        journal: Journal,
        epochs: int,
        halving: Halving | None,
        trials: int | None,
        seconds: float | None,
        prior_seconds: float,
    ) -> None:
        """Set up the oracle and replay the journal.

        Args:
            journal: journal to replay and to append to.
            epochs: epochs of a full trial.
            halving: settings of successive halving, or None.
            trials: maximum number of trials, or None.
            seconds: time limit of the whole search, over all restarts, or None.
            prior_seconds: seconds that the search took before its journal began.
        """
        self.journal, self.epochs, self._max_trials = journal, epochs, trials
        self.rungs = Rungs(halving, epochs, self.objective.direction == "max") if halving else None
        self.notes: dict[str, dict[str, Any]] = {}
        self.prior_seconds, self._time_limit = prior_seconds, seconds
        self._start_time = time.monotonic()
        self._display.verbose = 0
        self._replay()

    # --- KerasTuner's own files: replaced by the journal ---

    def save(self) -> None:
        """Do nothing: the journal holds the state."""

    def _save_trial(self, trial: Trial) -> None:
        """Do nothing: the journal holds the trial."""

    def _check_consecutive_failures(self) -> None:
        """Do nothing: many trials of a space may fail.

        An error raised here would keep KerasTuner's lock held forever.
        """

    # --- choosing a trial ---

    def _random_values(self) -> dict[str, Any] | None:
        # KerasTuner draws its first trial at random; here it takes the defaults of the space.
        if self.trials or self._tried_so_far:
            return super()._random_values()
        hp = self.hyperparameters
        return {
            parameter.name: parameter.default for parameter in hp.space if _active(hp, parameter)
        }

    def _compute_values_hash(self, values: dict[str, Any]) -> str:
        # Epochs do not make a trial new, but the id of the parent does: a Hyperband trial that
        # continues another one has the same values.
        hashed = {k: v for k, v in values.items() if not k.startswith("tuner/") or k == PARENT}
        return super()._compute_values_hash(hashed)

    @property
    def out_of_time(self) -> bool:
        """Whether the time limit is reached."""
        return self._time_limit is not None and self.elapsed >= self._time_limit

    @property
    def elapsed(self) -> float:
        """Seconds that the search took so far, over all restarts."""
        return self.prior_seconds + time.monotonic() - self._start_time

    @keras_tuner.synchronized
    def create_trial(self, tuner_id: str) -> Trial:
        """Return a lost trial of another worker, a promoted trial or a new one.

        Returns a trial with status IDLE (ask again later) or STOPPED (no trials are left) where
        there is none.
        """
        if tuner_id in self.ongoing_trials:
            return self.ongoing_trials[tuner_id]
        self.tuner_ids.add(tuner_id)
        if self.out_of_time and not self._replaying:
            self.tuner_ids.discard(tuner_id)
            return Trial(HyperParameters(), "", TrialStatus.STOPPED)
        has_lost = bool(self._retry_queue)  # trials of lost workers come first
        trial = self._promote(tuner_id, last=False) if not has_lost else None
        if trial is None:
            trial = self._retry_or_new(tuner_id, has_lost)
            if trial.status == TrialStatus.STOPPED and self.rungs is not None:
                trial = self._promote(tuner_id, last=not self.ongoing_trials) or trial
            if trial.status == TrialStatus.STOPPED and self.ongoing_trials:
                # A running trial may fail, pause or be lost; then there is more to do.
                self.tuner_ids.add(tuner_id)
                return Trial(HyperParameters(), "", TrialStatus.IDLE)
        self.exhausted = trial.status == TrialStatus.STOPPED
        if trial.status == TrialStatus.RUNNING:
            values = trial.hyperparameters.values
            event = {"event": "create", "trial": trial.trial_id, "tuner": tuner_id}
            self._log_event({**event, "values": values})
        return trial

    def _retry_or_new(self, tuner_id: str, has_lost: bool) -> Trial:
        """Return a lost trial or a new one; STOPPED at the maximum number of trials."""
        limit_reached = self._max_trials is not None and len(self.trials) >= self._max_trials
        if limit_reached and not has_lost and not self._replaying:
            return Trial(HyperParameters(), "", TrialStatus.STOPPED)
        trial: Trial = super().create_trial(tuner_id)
        if trial.status == TrialStatus.RUNNING and not has_lost and not self._sets_epochs:
            initial_epochs = self.rungs.levels[0] if self.rungs is not None else self.epochs
            trial.hyperparameters.values[EPOCHS] = initial_epochs
        return trial

    def _promote(self, tuner_id: str, last: bool) -> Trial | None:
        if self.rungs is None or self._replaying:
            return None
        busy = {trial.trial_id for trial in self.ongoing_trials.values()}
        busy |= {name for name, t in self.trials.items() if t.status == TrialStatus.FAILED}
        promotion = self.rungs.promotable(busy, last)
        if promotion is None:
            return None
        return self._resume_trial(*promotion, tuner_id)

    def _resume_trial(self, name: str, epochs: int, tuner_id: str) -> Trial:
        trial = self.trials[name]
        trial.status = TrialStatus.RUNNING
        trial.hyperparameters.values[EPOCHS] = epochs
        self.ongoing_trials[tuner_id] = trial
        return trial

    # --- recording results ---

    @keras_tuner.synchronized
    def end_trial(self, trial: Trial) -> None:
        """Record the result of a trial, whose notes arrive as JSON in `trial.message`."""
        known_trial = self.trials[trial.trial_id]
        if known_trial.status != TrialStatus.RUNNING:
            return  # a worker returned after it was declared lost; another result is recorded
        if trial.trial_id in self._retry_queue:  # it returned before the trial was handed out
            self._retry_queue.remove(trial.trial_id)
        notes = {} if trial.message is None else json.loads(trial.message)
        score = notes.get("score")
        if trial.status == TrialStatus.COMPLETED:
            self._record_score(trial.trial_id, int(notes["epochs"]), float(score))
        prior_seconds = self.notes.get(trial.trial_id, {}).get("seconds", 0.0)
        self.notes[trial.trial_id] = {**notes, "seconds": prior_seconds + notes.get("seconds", 0.0)}
        trial.message = notes.get("reason")
        self._log_event(
            {"event": "end", "trial": trial.trial_id, "status": trial.status, "notes": notes}
        )
        super().end_trial(trial)

    def _record_score(self, trial: str, epochs: int, score: float) -> None:
        # KerasTuner scores a trial by its best report. Here the last report counts, so that a
        # promoted trial is judged by its longest run.
        self.trials[trial].metrics.metrics.pop(self.objective.name, None)
        self.update_trial(trial, {self.objective.name: score}, step=epochs)
        if self.rungs is not None:
            self.rungs.record(trial, epochs, score)

    @contextmanager
    def running(self, trial_id: str) -> Iterator[None]:
        """Context around a trial that this process runs; a no-op here (see `service.Client`)."""
        yield

    @keras_tuner.synchronized
    def requeue_trial_of(self, tuner_id: str) -> None:
        """Queue the trial of a lost worker again; the next worker that asks receives it."""
        trial = self.ongoing_trials.pop(tuner_id, None)
        self.tuner_ids.discard(tuner_id)
        if trial is not None:
            self._retry_queue.append(trial.trial_id)
            self._log_event({"event": "lost", "trial": trial.trial_id, "tuner": tuner_id})

    def needed_trials(self) -> set[str]:
        """Return the trials whose checkpoints must stay: running, lost and paused ones."""
        running = {trial.trial_id for trial in list(self.ongoing_trials.values())}
        return running | set(self._retry_queue) | self.paused_trials()

    def paused_trials(self) -> set[str]:
        """Return the trials that are paused and may continue."""
        if self.rungs is None:
            return set()
        reached = [set(scores) for scores in self.rungs.scores]
        return {
            trial
            for rung, trials in enumerate(reached[:-1])
            for trial in trials - reached[rung + 1]
        }

    # --- the journal ---

    _replaying = False
    _sets_epochs = False
    exhausted = False  # no trial is left to hand out

    def _log_event(self, event: dict[str, Any]) -> None:
        if not self._replaying:
            self.journal.write({**event, "seconds": round(self.elapsed, 1)})

    def _replay(self) -> None:
        self._replaying = True
        for event in self.journal.read():
            self.prior_seconds = event["seconds"]
            if event["event"] == "create":
                self._replay_create(event)
            elif event["event"] == "lost":
                self.requeue_trial_of(event["tuner"])
            # The end of a trial that the time limit stopped is skipped if the limit was raised: the
            # trial counts as running, and resumes.
            elif not (event["notes"].get("cut") and self._time_was_raised()):
                trial = self.trials[event["trial"]]
                trial = Trial.from_state(trial.get_state())
                trial.status, trial.message = event["status"], json.dumps(event["notes"])
                self.end_trial(trial)
        self.tuner_ids.clear()
        self._replaying = False
        self._start_time = time.monotonic()
        # The processes of running trials died with the last searcher. The queue is last in, first
        # out: queue the oldest trial last, so that it runs first.
        by_age = sorted(self.ongoing_trials, key=lambda t: self.ongoing_trials[t].trial_id)
        for tuner in reversed(by_age):
            self.requeue_trial_of(tuner)

    def _time_was_raised(self) -> bool:
        """Return whether trials that the time limit stopped may continue."""
        return self._time_limit is None or self.prior_seconds < self._time_limit

    def _replay_create(self, event: dict[str, Any]) -> None:
        name, tuner = event["trial"], event["tuner"]
        if name in self.trials and name not in self._retry_queue:  # a paused trial
            trial = self._resume_trial(name, event["values"][EPOCHS], tuner)
        else:
            trial = self.create_trial(tuner)
        if trial.status != TrialStatus.RUNNING or trial.trial_id != event["trial"]:
            raise UserError(
                "journal.jsonl: must be replayed by the version of keras-tuner that wrote it; "
                "start a new search with another --workdir"
            )
        if trial.hyperparameters.values != event["values"]:
            console.log(
                f"trial {trial.trial_id}: keeping the values of the journal, "
                "though the oracle proposes others"
            )
            trial.hyperparameters.values = event["values"]
            self._record_values(trial)


class _Random(_JournaledOracle, oracles.RandomSearchOracle):
    pass


class _Grid(_JournaledOracle, oracles.GridSearchOracle):
    pass


class _Hyperband(_JournaledOracle, oracles.HyperbandOracle):
    _sets_epochs = True

    def paused_trials(self) -> set[str]:
        """Return the trials of each round whose successor round is not full."""
        paused: set[str] = set()
        for bracket in self._brackets:
            for round_index, next_round in enumerate(bracket["rounds"][1:]):
                if len(next_round) < self._get_size(bracket["bracket_num"], round_index + 1):
                    promoted = {info["past_id"] for info in next_round}
                    paused |= {info["id"] for info in bracket["rounds"][round_index]} - promoted
        return paused


class _Bayesian(_JournaledOracle, oracles.BayesianOptimizationOracle):
    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Return KerasTuner's proposal, or random values where these values were tried before."""
        proposal: dict[str, Any] = super().populate_space(trial_id)
        if proposal["values"] is not None and self._duplicate(proposal["values"]):
            return self._random_populate_space()
        return proposal


def build(
    config: TuneConfig,
    space: HyperParameters,
    objective: tuple[str, str],
    epochs: int,
    journal: Journal,
    prior_seconds: float = 0.0,
) -> Any:
    """Build the oracle of a search and replay its journal.

    Args:
        config: section `tune`.
        space: search space; its defaults are the first trial.
        objective: name of a metric of the validation split, and `max` or `min`.
        epochs: epochs of a full trial.
        journal: journal of the search.
        prior_seconds: seconds that the search took before its journal began.

    Raises:
        UserError: the Bayesian oracle is configured and scikit-learn is not installed.
    """
    name, direction = objective
    common: dict[str, Any] = {
        "objective": Objective(name, direction),
        "hyperparameters": space,
        "seed": config.seed + 1,  # KerasTuner takes 0 for a random seed
    }
    # KerasTuner must not know the number of trials: it pads trial ids to the width of that number,
    # so ids would change when the limit is raised.
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
    oracle.prepare(journal, epochs, config.halving, trials, seconds, prior_seconds)
    return oracle


def root_trial(oracle: Any, trial: Trial) -> str:
    """Return the id of the trial that began the run which `trial` continues."""
    while (parent := trial.hyperparameters.values.get(PARENT)) is not None:
        trial = oracle.get_trial(parent)
    return str(trial.trial_id)


def _active(hp: HyperParameters, parameter: Any) -> bool:
    copy = hp.copy()
    copy.values = {o.name: o.default for o in hp.space}
    return bool(copy.is_active(parameter))
