"""Figures of a tagger beside scikit-learn's."""

import tracemalloc
import warnings

import numpy as np
import pytest
import sklearn.metrics as sk

from tfft.evaluation import multilabel_metrics
from tfft.tasks import TASKS

TASK = TASKS["image_multilabel"]


def rows(seed=0, count=60, tags=5, ties=False):
    generator = np.random.default_rng(seed)
    truth = (generator.uniform(size=(count, tags)) < [0.5, 0.1, 0.3, 0.8, 0.0]).astype(np.float32)
    logits = generator.normal(size=(count, tags)) + truth
    return (logits.round() if ties else logits).astype(np.float32), truth


@pytest.mark.parametrize("ties", [False, True])
def test_headline_equals_scikit_learn(ties):
    logits, truth = rows(ties=ties)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    limits = np.array([0.4, 0.5, 0.6, 0.3, 0.5])
    yes = p >= limits
    figures = TASK.metrics(logits, truth, limits)
    for name in ("micro", "macro"):
        wanted = sk.f1_score(truth, yes, average=name, zero_division=0)
        assert figures[f"{name}_f1"] == pytest.approx(wanted)
    assert figures["micro_precision"] == pytest.approx(
        sk.precision_score(truth, yes, average="micro")
    )
    assert figures["micro_recall"] == pytest.approx(sk.recall_score(truth, yes, average="micro"))
    assert figures["exact_match"] == pytest.approx(sk.accuracy_score(truth, yes))
    wanted = sk.average_precision_score(truth[:, :4], p[:, :4], average="macro")
    assert figures["mean_average_precision"] == pytest.approx(wanted)
    wanted = np.mean([sk.log_loss(truth[:, i], p[:, i], labels=[0, 1]) for i in range(5)])
    assert figures["log_loss"] == pytest.approx(wanted)


def test_by_tag_equals_scikit_learn():
    logits, truth = rows(1)
    details = TASK.details(logits, truth, None)
    p = multilabel_metrics.sigmoid(logits)
    wanted = sk.precision_recall_fscore_support(truth, p >= 0.5, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), wanted, strict=True):
        np.testing.assert_allclose(details.by_class[name], values)
    assert details.by_class["average_precision"][4] == 0  # no row has it
    assert details.confusion is None
    assert details.wrong.sum() == (~((p >= 0.5) == (truth > 0)).all(1)).sum()
    told = details.describe(3, list("abcde"))
    assert told["label"] == "|".join(n for n, t in zip("abcde", truth[3], strict=True) if t)
    assert told["about"] == int(np.abs(p[3] - truth[3]).argmax())


def test_calibration_error_by_hand():
    p = np.array([[0.05, 0.95], [0.05, 0.95]])
    truth = np.array([[0.0, 1.0], [1.0, 1.0]])
    # Two pairs at 0.05, half of them true; two at 0.95, all of them.
    assert multilabel_metrics.calibration_error(p, truth) == pytest.approx((0.45 + 0.05) / 2)


def test_a_resample_is_the_figure_of_the_drawn_rows():
    """Every draw, rebuilt by repeating rows and asking scikit-learn."""
    logits, truth = rows(2, 30)
    found = TASK.bootstrap(logits, truth, 20, 7, None)
    weights = np.random.default_rng(7).multinomial(30, np.full(30, 1 / 30), size=20)
    for draw in range(20):
        at = np.repeat(np.arange(30), weights[draw])
        own, p = truth[at], multilabel_metrics.sigmoid(logits[at])
        seen = own.any(axis=0)
        wanted = sk.average_precision_score(own[:, seen], p[:, seen], average="macro")
        assert found["mean_average_precision"][draw] == pytest.approx(wanted)
        wanted = sk.f1_score(own, p >= 0.5, average="micro")
        assert found["micro_f1"][draw] == pytest.approx(wanted)
        wanted = sk.accuracy_score(own, p >= 0.5)
        assert found["exact_match"][draw] == pytest.approx(wanted)


@pytest.mark.parametrize("ties", [False, True])
def test_thresholds_give_the_best_f1_that_there_is(ties):
    logits, truth = rows(3, 40, ties=ties)
    p = multilabel_metrics.sigmoid(logits)
    limits = TASK.fit_thresholds(logits, truth)
    assert limits[4] == 0.5  # no row to tune on
    for tag in range(4):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            every = [sk.f1_score(truth[:, tag], p[:, tag] >= t) for t in np.unique(p[:, tag])]
        found = sk.f1_score(truth[:, tag], p[:, tag] >= limits[tag])
        assert found == pytest.approx(max(every))


def test_a_tag_that_all_rows_have_keeps_a_half():
    limits = TASK.fit_thresholds(np.zeros((3, 2), np.float32), np.array([[1, 0], [1, 1], [1, 0]]))
    assert limits[0] == 0.5


def test_many_tags_take_little_memory():
    """A figure by tag of 100 draws at once takes 32 MB for 40,000 tags."""
    generator = np.random.default_rng(0)
    truth = (generator.random((6, 40_000)) < 0.3).astype(np.float32)
    probabilities = generator.random(truth.shape)
    tracemalloc.start()
    samples = multilabel_metrics.bootstrap(probabilities, truth, probabilities > 0.5, 100, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150 * 2**20
    figures = multilabel_metrics.headline(probabilities, truth, probabilities > 0.5)
    assert np.mean(samples["micro_f1"]) == pytest.approx(figures["micro_f1"], abs=0.01)
