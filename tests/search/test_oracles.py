"""The trials that oracles choose: first, retried, resumed; unchanged by any number of crashes."""

import json
import math
import random
import threading
from itertools import pairwise

import numpy as np
import pytest
import yaml
from keras_tuner.engine.trial import Trial

from tfft.config import Halving, TuneConfig
from tfft.search import oracles
from tfft.search.leaderboard import Leaderboard
from tfft.search.oracles import EPOCHS, Journal, Rungs
from tfft.search.pipeline import take_trials
from tfft.search.space import Space
from tfft.search.trials import Outcome

RAW = """
data: {train: rows.csv, validation: {fraction: 0.1}}
model: {backbone: "hf:folder"}
method:
  search: choice
  values: [{name: full}, {name: lora, rank: {search: choice, values: [4, 8]}}]
optimizer: {learning_rate: {search: loguniform, min: 1.0e-5, max: 1.0e-2}}
train: {epochs: 9, batch_size: {search: choice, values: [16, 32]}}
"""
GRID = RAW.replace("learning_rate: {search: loguniform, min: 1.0e-5, max: 1.0e-2}", "name: adamw")


class Killed(BaseException):
    """Stands for the death of the process."""


class FakeRunner:
    """A runner that computes the score from values and epochs instead of training.

    Raises `Killed` after `lives` trials.
    """

    def __init__(self, lives=None):
        self.lives, self.trained = lives, []  # (trial, from epoch, to epoch)
        self.reached = {}

    def run_trial(self, name, values, epochs, should_stop):
        if self.lives is not None:
            self.lives -= 1
            if self.lives < 0:
                raise Killed
        learning_rate = values.get("optimizer.learning_rate", 1e-3)
        if learning_rate > 5e-3:
            return Outcome("FAILED", reason="the loss is nan", seconds=1.0)
        self.trained.append((name, self.reached.get(name, 0), epochs))
        self.reached[name] = epochs
        score = 1 - abs(math.log10(learning_rate) + 3.3) / 4 + 0.01 * epochs
        score += 0.001 * len(values.get("method", ""))
        return Outcome("COMPLETED", score, epochs=epochs, seconds=1.0)


def make_oracle(path, kind="random", text=RAW, defaults=None, **changes):
    config = TuneConfig(oracle=kind, **changes)
    hp = Space(yaml.safe_load(text)).hyperparameters(defaults)
    return oracles.build(config, hp, ("accuracy", "max"), 9, Journal(path / "journal.jsonl"))


def finish(search_oracle, runner, worker="worker0"):
    take_trials(search_oracle, runner, worker, lambda: False)
    return search_oracle


def table(search_oracle):
    """Return values, status and score of all trials."""
    return {
        name: (trial.hyperparameters.values, trial.status, trial.score)
        for name, trial in search_oracle.trials.items()
    }


KINDS = [
    ("random", RAW, {"trials": 12}),
    ("random", RAW, {"trials": 12, "halving": {"factor": 3, "min_epochs": 1}}),
    ("bayesian", RAW, {"trials": 10}),
    ("hyperband", RAW, {}),
    ("grid", GRID, {}),
]


@pytest.mark.parametrize(("kind", "text", "changes"), KINDS)
def test_crashes_do_not_change_the_search(tmp_path, kind, text, changes):
    (tmp_path / "whole").mkdir()
    runner = FakeRunner()
    expected = finish(make_oracle(tmp_path / "whole", kind, text, **changes), runner)
    generator, deaths, trained = random.Random(3), 0, []
    while True:
        dying_runner = FakeRunner(lives=generator.randint(0, 3))
        dying_runner.reached = {name: end for name, _, end in trained}
        resumed = make_oracle(tmp_path, kind, text, **changes)
        try:
            finish(resumed, dying_runner)
        except Killed:
            deaths += 1
            journal = tmp_path / "journal.jsonl"
            if deaths % 2 and journal.is_file():
                with open(journal, "a") as file:
                    file.write('{"event": "en')  # incomplete: killed while writing
            continue
        finally:
            trained += dying_runner.trained
        break
    assert deaths >= 2
    assert table(resumed) == table(expected)
    assert trained == runner.trained  # no epoch is trained twice or left out


@pytest.mark.parametrize(("kind", "text", "changes"), KINDS)
def test_first_trial_takes_the_given_values(tmp_path, kind, text, changes):
    first = {"method": "lora", "method.rank": 8, "train.batch_size": 32}
    if text is RAW:
        first["optimizer.learning_rate"] = 2e-4
    search_oracle = make_oracle(tmp_path, kind, text, first, **changes)
    values = search_oracle.create_trial("worker0").hyperparameters.values
    assert {k: v for k, v in values.items() if not k.startswith("tuner/")} == first


@pytest.mark.parametrize(("kind", "text", "changes"), KINDS)
def test_raising_the_trials_extends_the_search(tmp_path, kind, text, changes):
    """Raising the number of trials keeps the finished ones, and no epoch is trained twice."""
    runner = FakeRunner()
    small = finish(make_oracle(tmp_path, kind, text, **{**changes, "trials": 5}), runner)
    small_table = table(small)
    extended = finish(make_oracle(tmp_path, kind, text, **changes), runner)
    assert len(small_table) == 5 < len(extended.trials)
    for name, (values, _, _) in small_table.items():
        assert {**values, EPOCHS: 0} == {**table(extended)[name][0], EPOCHS: 0}
    ends = {}
    for name, start, end in runner.trained:
        assert ends.get(name, 0) == start < end or kind == "hyperband"
        ends[name] = end
    reduced = make_oracle(tmp_path, kind, text, **{**changes, "trials": 2})
    assert table(reduced) == table(extended)  # finished trials are not removed


def test_trials_stopped_by_the_time_limit_resume_with_more_time(tmp_path):
    search_oracle = make_oracle(tmp_path, trials=2, time="1 minutes")
    first = search_oracle.create_trial("w")
    search_oracle.prior_seconds += 100.0
    assert search_oracle.out_of_time
    copy = Trial.from_state(first.get_state())
    outcome = Outcome("COMPLETED", 0.5, epochs=2, cut=True)
    copy.status, copy.message = outcome.status, outcome.to_json()
    search_oracle.end_trial(copy)
    assert search_oracle.create_trial("w").status == "STOPPED"
    reopened = make_oracle(tmp_path, trials=2, time="1 minutes")
    assert reopened.trials["0000"].status == "COMPLETED"
    assert reopened.create_trial("w").status == "STOPPED"
    extended = make_oracle(tmp_path, trials=2, time="2 minutes")
    resumed = extended.create_trial("w")
    assert (resumed.trial_id, resumed.status) == ("0000", "RUNNING")
    assert resumed.hyperparameters.values == first.hyperparameters.values
    assert 100 <= extended.elapsed < 120


def test_grid_tries_all_values_once(tmp_path):
    search_oracle = finish(make_oracle(tmp_path, "grid", GRID), FakeRunner())
    tried = [tuple(sorted(v.items())) for v, _, _ in table(search_oracle).values()]
    assert len(tried) == len(set(tried)) == 3 * 2


def test_exhausted_space_ends_the_search(tmp_path):
    for kind in ("random", "bayesian"):
        (tmp_path / kind).mkdir()
        search_oracle = finish(make_oracle(tmp_path / kind, kind, GRID, trials=50), FakeRunner())
        assert 4 <= len(search_oracle.trials) <= 6


def test_halving_resumes_the_best_trials(tmp_path):
    runner = FakeRunner()
    search_oracle = finish(make_oracle(tmp_path, trials=9, halving=Halving(factor=3)), runner)
    assert [search_oracle.rungs.levels, len(search_oracle.trials)] == [[1, 3, 9], 9]
    fully_trained = [name for name, _, end in runner.trained if end == 9]
    assert 1 <= len(fully_trained) <= 3
    for name in fully_trained:
        segments = [(start, end) for n, start, end in runner.trained if n == name]
        assert segments == [(0, 1), (1, 3), (3, 9)]
    # The best trial of the first rung is trained to the end.
    first_rung = search_oracle.rungs.scores[0]
    assert max(first_rung, key=first_rung.get) in fully_trained
    assert sum(end - start for _, start, end in runner.trained) < 9 * 9 / 2


def test_promotion_follows_the_paper():
    rungs = Rungs(Halving(factor=3), 9, maximize=False)
    for name, score in zip("abcdef", (5, 1, 4, 2, 6, 3), strict=True):
        rungs.record(name, 1, score)
    assert rungs.promotable(set(), last=False) == ("b", 3)
    assert rungs.promotable({"b"}, last=False) == ("d", 3)
    rungs.record("b", 3, 0.5)
    rungs.record("d", 3, 0.7)
    assert rungs.promotable(set(), last=False) is None  # a third of two rounds down to none
    assert rungs.promotable(set(), last=True) == ("b", 9)


def test_hyperband_resumes_the_run_of_the_parent_trial(tmp_path):
    runner = FakeRunner()
    search_oracle = finish(make_oracle(tmp_path, "hyperband"), runner)
    continued = [
        t for t in search_oracle.trials.values() if "tuner/trial_id" in t.hyperparameters.values
    ]
    assert continued
    for trial in continued:
        name = oracles.root_trial(search_oracle, trial)
        segments = [(start, end) for n, start, end in runner.trained if n == name]
        assert all(previous[1] == following[0] for previous, following in pairwise(segments))


def test_failed_trials_do_not_end_the_search(tmp_path):
    search_oracle = finish(make_oracle(tmp_path, trials=30, halving=Halving()), FakeRunner())
    statuses = [trial.status for trial in search_oracle.trials.values()]
    assert len(statuses) == 30 and 1 <= statuses.count("FAILED") < 30
    leaderboard = Leaderboard(Space(yaml.safe_load(RAW)), "accuracy", "max")
    leaderboard.update(search_oracle)
    assert len(leaderboard.rows) == 30
    assert "the loss is nan" in leaderboard._table(leaderboard.ranked)[-1]
    assert leaderboard.best().outcome.epochs == 9


def test_several_workers_share_the_trials(tmp_path):
    search_oracle, runners = make_oracle(tmp_path, trials=40), [FakeRunner() for _ in range(4)]
    threads = [
        threading.Thread(
            target=finish, args=(search_oracle, runner, f"worker{index}"), name=f"w{index}"
        )
        for index, runner in enumerate(runners)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(search_oracle.trials) == 40 == len(search_oracle.end_order)
    names = [name for runner in runners for name, _, _ in runner.trained]
    assert len(names) == len(set(names))
    replayed = make_oracle(tmp_path, trials=40)
    assert table(replayed) == table(search_oracle)


def test_trial_of_a_lost_worker_is_retried(tmp_path):
    search_oracle = make_oracle(tmp_path, trials=3)
    lost_trial = search_oracle.create_trial("far")
    search_oracle.create_trial("near")
    search_oracle.requeue_trial_of("far")
    search_oracle.requeue_trial_of("far")  # has no effect
    assert search_oracle.create_trial("other").trial_id == lost_trial.trial_id
    replayed = make_oracle(tmp_path, trials=3)  # all processes are gone
    assert [replayed.create_trial(f"w{n}").trial_id for n in range(3)] == ["0000", "0001", "0002"]


def test_late_result_is_ignored(tmp_path):
    search_oracle = make_oracle(tmp_path, trials=2)
    trial = search_oracle.create_trial("far")
    search_oracle.requeue_trial_of("far")
    finish(search_oracle, FakeRunner())
    expected = table(search_oracle)
    trial.status = "COMPLETED"
    trial.message = json.dumps({"score": 9.0, "epochs": 9})
    search_oracle.end_trial(trial)
    assert table(search_oracle) == expected


def test_time_limit_counts_all_restarts(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("tfft.search.oracles.time.monotonic", lambda: clock[0])

    class SlowRunner(FakeRunner):
        def run_trial(self, *arguments):
            clock[0] += 25.0
            return super().run_trial(*arguments)

    search_oracle = make_oracle(tmp_path, trials=50, time="1 minutes", text=GRID)
    with pytest.raises(Killed):
        finish(search_oracle, SlowRunner(lives=1))
    clock[0] = 1000.0  # time between the starts does not count
    search_oracle = make_oracle(tmp_path, trials=50, time="1 minutes", text=GRID)
    assert search_oracle.elapsed == pytest.approx(25.0)
    finish(search_oracle, SlowRunner())
    assert len(search_oracle.trials) == 3 and search_oracle.out_of_time


def test_score_of_a_promoted_trial_is_its_last(tmp_path):
    search_oracle = finish(make_oracle(tmp_path, trials=9, halving=Halving()), FakeRunner())
    for trial in search_oracle.trials.values():
        if trial.status == "COMPLETED":
            epochs = trial.hyperparameters.values[EPOCHS]
            assert trial.score == pytest.approx(
                search_oracle.rungs.scores[search_oracle.rungs.levels.index(epochs)][trial.trial_id]
            )
            assert np.isfinite(trial.score)
