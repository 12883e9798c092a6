"""What the oracles give next: first, again, further; the same after any number of crashes."""

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
    """The process died here."""


class Simulated:
    """Trains nothing: the score follows from values and epochs; dies where it is told to."""

    def __init__(self, lives=None):
        self.lives, self.trained = lives, []  # (trial, from epoch, to epoch)
        self.reached = {}

    def trial(self, name, values, epochs, stopped):
        if self.lives is not None:
            self.lives -= 1
            if self.lives < 0:
                raise Killed
        rate = values.get("optimizer.learning_rate", 1e-3)
        if rate > 5e-3:
            return Outcome("FAILED", reason="the loss is nan", seconds=1.0)
        self.trained.append((name, self.reached.get(name, 0), epochs))
        self.reached[name] = epochs
        score = 1 - abs(math.log10(rate) + 3.3) / 4 + 0.01 * epochs
        score += 0.001 * len(values.get("method", ""))
        return Outcome("COMPLETED", score, epochs=epochs, seconds=1.0)


def oracle(path, kind="random", text=RAW, first=None, **changes):
    config = TuneConfig(oracle=kind, **changes)
    hp = Space(yaml.safe_load(text)).hyperparameters(first)
    return oracles.make(config, hp, ("accuracy", "max"), 9, Journal(path / "journal.jsonl"))


def finish(made, runner, tuner="worker0"):
    take_trials(made, runner, tuner, lambda: False)
    return made


def table(made):
    """Values, status and score of all trials."""
    return {
        name: (trial.hyperparameters.values, trial.status, trial.score)
        for name, trial in made.trials.items()
    }


KINDS = [
    ("random", RAW, {"trials": 12}),
    ("random", RAW, {"trials": 12, "halving": {"factor": 3, "min_epochs": 1}}),
    ("bayesian", RAW, {"trials": 10}),
    ("hyperband", RAW, {}),
    ("grid", GRID, {}),
]


@pytest.mark.parametrize(("kind", "text", "changes"), KINDS)
def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(tmp_path, kind, text, changes):
    (tmp_path / "whole").mkdir()
    runner = Simulated()
    whole = finish(oracle(tmp_path / "whole", kind, text, **changes), runner)
    generator, deaths, trained = random.Random(3), 0, []
    while True:
        mortal = Simulated(lives=generator.randint(0, 3))
        mortal.reached = {name: to for name, _, to in trained}
        made = oracle(tmp_path, kind, text, **changes)
        try:
            finish(made, mortal)
        except Killed:
            deaths += 1
            journal = tmp_path / "journal.jsonl"
            if deaths % 2 and journal.is_file():
                with open(journal, "a") as file:
                    file.write('{"event": "en')  # cut off as it was written
            continue
        finally:
            trained += mortal.trained
        break
    assert deaths >= 2
    assert table(made) == table(whole)
    assert trained == runner.trained  # nothing twice, nothing left out


@pytest.mark.parametrize(("kind", "text", "changes"), KINDS)
def test_the_first_trial_is_the_one_that_is_asked_for(tmp_path, kind, text, changes):
    first = {"method": "lora", "method.rank": 8, "train.batch_size": 32}
    if text is RAW:
        first["optimizer.learning_rate"] = 2e-4
    made = oracle(tmp_path, kind, text, first, **changes)
    values = made.create_trial("worker0").hyperparameters.values
    assert {k: v for k, v in values.items() if not k.startswith("tuner/")} == first


@pytest.mark.parametrize(("kind", "text", "changes"), KINDS)
def test_with_more_trials_it_goes_on(tmp_path, kind, text, changes):
    """First fewer; those are kept as they were, and no epoch is trained twice."""
    runner = Simulated()
    few = finish(oracle(tmp_path, kind, text, **{**changes, "trials": 5}), runner)
    before = table(few)
    more = finish(oracle(tmp_path, kind, text, **changes), runner)
    assert len(before) == 5 < len(more.trials)
    for name, (values, _, _) in before.items():
        assert {**values, EPOCHS: 0} == {**table(more)[name][0], EPOCHS: 0}
    ends = {}
    for name, start, end in runner.trained:
        assert ends.get(name, 0) == start < end or kind == "hyperband"
        ends[name] = end
    fewer = oracle(tmp_path, kind, text, **{**changes, "trials": 2})
    assert table(fewer) == table(more)  # what is there is not taken away


def test_what_the_time_cut_off_goes_on_with_more_time(tmp_path):
    made = oracle(tmp_path, trials=2, time="1 minutes")
    first = made.create_trial("w")
    made.spent += 100.0
    assert made.over
    copy = Trial.from_state(first.get_state())
    part = Outcome("COMPLETED", 0.5, epochs=2, cut=True)
    copy.status, copy.message = part.status, part.text()
    made.end_trial(copy)
    assert made.create_trial("w").status == "STOPPED"
    same = oracle(tmp_path, trials=2, time="1 minutes")
    assert same.trials["0000"].status == "COMPLETED"
    assert same.create_trial("w").status == "STOPPED"
    more = oracle(tmp_path, trials=2, time="2 minutes")
    again = more.create_trial("w")
    assert (again.trial_id, again.status) == ("0000", "RUNNING")
    assert again.hyperparameters.values == first.hyperparameters.values
    assert 100 <= more.elapsed < 120


def test_grid_tries_everything_once(tmp_path):
    made = finish(oracle(tmp_path, "grid", GRID), Simulated())
    found = [tuple(sorted(v.items())) for v, _, _ in table(made).values()]
    assert len(found) == len(set(found)) == 3 * 2


def test_a_space_that_is_used_up_ends_the_search(tmp_path):
    for kind in ("random", "bayesian"):
        (tmp_path / kind).mkdir()
        made = finish(oracle(tmp_path / kind, kind, GRID, trials=50), Simulated())
        assert 4 <= len(made.trials) <= 6


def test_halving_goes_on_with_the_best_from_where_they_were(tmp_path):
    runner = Simulated()
    made = finish(oracle(tmp_path, trials=9, halving=Halving(factor=3)), runner)
    assert [made.rungs.levels, len(made.trials)] == [[1, 3, 9], 9]
    whole = [name for name, _, to in runner.trained if to == 9]
    assert 1 <= len(whole) <= 3
    for name in whole:
        parts = [(a, b) for n, a, b in runner.trained if n == name]
        assert parts == [(0, 1), (1, 3), (3, 9)]
    # The best of the first rung came to the end.
    at_one = made.rungs.scores[0]
    assert max(at_one, key=at_one.get) in whole
    assert sum(b - a for _, a, b in runner.trained) < 9 * 9 / 2


def test_promotion_is_that_of_the_paper():
    rungs = Rungs(Halving(factor=3), 9, maximize=False)
    for name, score in zip("abcdef", (5, 1, 4, 2, 6, 3), strict=True):
        rungs.record(name, 1, score)
    assert rungs.promotable(set(), last=False) == ("b", 3)
    assert rungs.promotable({"b"}, last=False) == ("d", 3)
    rungs.record("b", 3, 0.5)
    rungs.record("d", 3, 0.7)
    assert rungs.promotable(set(), last=False) is None  # a third of two is none
    assert rungs.promotable(set(), last=True) == ("b", 9)


def test_hyperband_goes_on_in_the_run_of_the_trial_before(tmp_path):
    runner = Simulated()
    made = finish(oracle(tmp_path, "hyperband"), runner)
    further = [t for t in made.trials.values() if "tuner/trial_id" in t.hyperparameters.values]
    assert further
    for trial in further:
        name = oracles.root(made, trial)
        parts = [(a, b) for n, a, b in runner.trained if n == name]
        assert all(before[1] == after[0] for before, after in pairwise(parts))


def test_a_failed_trial_is_one_failed_trial(tmp_path):
    made = finish(oracle(tmp_path, trials=30, halving=Halving()), Simulated())
    statuses = [trial.status for trial in made.trials.values()]
    assert len(statuses) == 30 and 1 <= statuses.count("FAILED") < 30
    board = Leaderboard(Space(yaml.safe_load(RAW)), "accuracy", "max")
    board.take(made)
    assert len(board.rows) == 30
    assert "the loss is nan" in board._table(board.ranked)[-1]
    assert board.best().outcome.epochs == 9


def test_several_workers_share_the_trials(tmp_path):
    made, runners = oracle(tmp_path, trials=40), [Simulated() for _ in range(4)]
    threads = [
        threading.Thread(target=finish, args=(made, runner, f"worker{at}"), name=f"w{at}")
        for at, runner in enumerate(runners)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made.trials) == 40 == len(made.end_order)
    names = [name for runner in runners for name, _, _ in runner.trained]
    assert len(names) == len(set(names))
    again = oracle(tmp_path, trials=40)
    assert table(again) == table(made)


def test_what_a_lost_worker_had_is_given_again(tmp_path):
    made = oracle(tmp_path, trials=3)
    lost = made.create_trial("far")
    made.create_trial("near")
    made.lose("far")
    made.lose("far")  # nothing is left to lose
    assert made.create_trial("other").trial_id == lost.trial_id
    again = oracle(tmp_path, trials=3)  # whose processes are all gone
    assert [again.create_trial(f"w{n}").trial_id for n in range(3)] == ["0000", "0001", "0002"]


def test_a_late_result_does_not_count_twice(tmp_path):
    made = oracle(tmp_path, trials=2)
    trial = made.create_trial("far")
    made.lose("far")
    finish(made, Simulated())
    before = table(made)
    trial.status = "COMPLETED"
    trial.message = json.dumps({"score": 9.0, "epochs": 9})
    made.end_trial(trial)
    assert table(made) == before


def test_time_ends_the_search_over_all_its_starts(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("tfft.search.oracles.time.monotonic", lambda: clock[0])

    class Slow(Simulated):
        def trial(self, *arguments):
            clock[0] += 25.0
            return super().trial(*arguments)

    made = oracle(tmp_path, trials=50, time="1 minutes", text=GRID)
    with pytest.raises(Killed):
        finish(made, Slow(lives=1))
    clock[0] = 1000.0  # what passed between the starts does not count
    made = oracle(tmp_path, trials=50, time="1 minutes", text=GRID)
    assert made.elapsed == pytest.approx(25.0)
    finish(made, Slow())
    assert len(made.trials) == 3 and made.over


def test_scores_of_one_that_went_on_are_the_last(tmp_path):
    made = finish(oracle(tmp_path, trials=9, halving=Halving()), Simulated())
    for trial in made.trials.values():
        if trial.status == "COMPLETED":
            epochs = trial.hyperparameters.values[EPOCHS]
            assert trial.score == pytest.approx(
                made.rungs.scores[made.rungs.levels.index(epochs)][trial.trial_id]
            )
            assert np.isfinite(trial.score)
