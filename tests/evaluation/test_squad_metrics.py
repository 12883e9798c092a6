"""SQuAD's metrics against the scores of the official scripts (tests/golden/squad.json)."""

import json

import numpy as np
import pytest

from tests.conftest import GOLDEN
from tfft.evaluation import metrics, squad_metrics

SCORES = json.loads((GOLDEN / "squad.json").read_text(encoding="utf-8"))["scores"]


def score(rows, no_answers):
    answers = [row["answers"] for row in rows]
    return squad_metrics.score([row["predicted"] for row in rows], answers, no_answers)


def test_version_1_equals_the_script():
    rows, means = SCORES["v1"]["rows"], SCORES["v1"]["means"]
    scores = score(rows, no_answers=False)
    assert np.stack([scores.exact, scores.f1], axis=1).tolist() == [r["scores"] for r in rows]
    headline = squad_metrics.headline(scores)
    assert headline == pytest.approx({k: v / 100 for k, v in means.items()}, abs=1e-12)


@pytest.mark.parametrize("case", SCORES["v2"], ids=["distinct", "ties", "positive"])
def test_version_2_equals_the_script(case):
    scores = score(case["rows"], no_answers=True)
    assert [scores.exact.tolist(), scores.f1.tolist()] == case["scores"]
    margins = np.array(case["margins"])
    for evaluation in case["evaluations"]:
        thresholded = squad_metrics.apply_threshold(scores, margins, evaluation["threshold"])
        actual = squad_metrics.headline(thresholded, no_answers=True)
        actual["exact"] = actual.pop("exact_match")
        expected = evaluation["means"]
        for name in ("exact", "f1"):
            threshold, best = (expected.pop(f"best_{name}{end}") for end in ("_thresh", ""))
            assert_fitted_threshold_is_that_of_the_script(scores, margins, name, threshold, best)
        for name, value in actual.items():
            assert value * 100 == pytest.approx(expected.pop(name), abs=1e-10), name
        totals = [expected.pop(f"{part}total") for part in ("", "HasAns_", "NoAns_")]
        has_answer = scores.has_answer.sum()
        assert totals == [len(margins), has_answer, len(margins) - has_answer] and not expected


def assert_fitted_threshold_is_that_of_the_script(scores, margins, name, threshold, best):
    """Assert that `fit_threshold` answers the rows that the script's best threshold answers.

    The mean is the script's as well, but for a difference by intention: to the script, any text is
    wrong in a row without an answer when it fits a threshold, also one that is scored as none.
    """
    fitted = squad_metrics.fit_threshold(getattr(scores, name), margins, scores)
    assert ((margins <= fitted) == (margins <= threshold)).all()
    thresholded = squad_metrics.apply_threshold(scores, margins, fitted)
    scored_as_none = ~scores.has_answer & thresholded.is_answered & (getattr(scores, name) == 1)
    mean = squad_metrics.headline(thresholded)["exact_match" if name == "exact" else name]
    assert (mean - scored_as_none.mean()) * 100 == pytest.approx(best, abs=1e-10)
    # In these files that is the answer "the".
    assert scored_as_none.sum() == 1


def test_normalization():
    assert squad_metrics.normalize_answer("The  cat's\tA-team, an O.K. (the)") == "cats ateam ok"
    assert squad_metrics.normalize_answer("Ätna, “the” 谷仓。") == "ätna “ ” 谷仓。"


def test_a_part_without_rows_is_left_out():
    scores = squad_metrics.score(["a b", ""], [["b"], ["b c"]], no_answers=True)
    assert set(squad_metrics.headline(scores, no_answers=True)) == {
        *("exact_match", "f1", "HasAns_exact", "HasAns_f1")
    }
    with pytest.raises(ValueError, match="row 1 has no answer"):
        squad_metrics.score(["a", "b"], [["a"], []])


@pytest.fixture(scope="module")
def case():
    """Scores of 300 rows, a third without an answer, and margins that tell most of them apart."""
    generator = np.random.default_rng(4)
    has_answer = generator.uniform(size=300) < 0.67
    f1 = np.where(has_answer, np.round(generator.uniform(size=300), 2), 0.0)
    scores = squad_metrics.Scores((f1 > 0.6) * 1.0, f1, has_answer, np.ones(300, bool))
    margins = np.round(generator.normal(size=300) - 2.0 * has_answer, 1)  # with equal ones
    return scores, margins


@pytest.mark.parametrize("name", ["exact", "f1"])
def test_fitted_threshold_has_the_best_mean_of_all(case, name):
    scores, margins = case
    values = getattr(scores, name)

    def mean(threshold):
        return getattr(squad_metrics.apply_threshold(scores, margins, threshold), name).mean()

    fitted = squad_metrics.fit_threshold(values, margins, scores)
    steps = np.unique(margins)
    candidates = [steps[0] - 1, *(steps[1:] + steps[:-1]) / 2, steps[-1] + 1]
    assert fitted in candidates
    assert mean(fitted) == max(map(mean, candidates)) > max(mean(-99), mean(99))
    # It is not nearer to a margin than half of a step.
    assert np.abs(margins - fitted).min() > 0.04


def test_fitted_threshold_at_the_ends():
    ones, margins = np.ones(3), np.array([-1.0, 2.0, 3.0])
    for has_answer, threshold in ((True, 4.0), (False, -2.0)):
        state = np.full(3, has_answer)
        scores = squad_metrics.Scores(ones * state, ones * state, state, np.ones(3, bool))
        fitted = squad_metrics.fit_threshold(scores.f1, margins, scores)
        assert fitted == threshold
        assert squad_metrics.apply_threshold(scores, margins, fitted).f1.tolist() == [1, 1, 1]


def test_bootstrap_equals_resampling_rows(case):
    scores, _ = case
    samples = squad_metrics.bootstrap(scores, 2000, 0, no_answers=True)
    headline = squad_metrics.headline(scores, no_answers=True)
    assert set(samples) == set(headline)
    for name in ("exact_match", "f1", "HasAns_exact", "HasAns_f1"):
        low, high = metrics.interval(samples[name], 0.95)
        assert low < headline[name] < high
    generator = np.random.default_rng(1)
    rows = generator.integers(0, 300, (2000, 300))
    drawn = scores.f1[rows], scores.has_answer[rows]
    for name, values in (
        ("f1", drawn[0].mean(axis=1)),
        ("HasAns_f1", (drawn[0] * drawn[1]).sum(axis=1) / drawn[1].sum(axis=1)),
    ):
        assert samples[name].mean() == pytest.approx(values.mean(), abs=0.002)
        assert samples[name].std() == pytest.approx(values.std(), rel=0.1)


def test_bootstrap_in_chunks_has_all_draws(case, monkeypatch):
    monkeypatch.setattr(metrics, "chunks", lambda draws, width: iter([3, 3, 1]))
    samples = squad_metrics.bootstrap(case[0], 7, 0)
    assert {name: len(values) for name, values in samples.items()} == {"exact_match": 7, "f1": 7}
    assert len(np.unique(samples["f1"])) == 7
