"""Metrics of multi-label tasks against scikit-learn."""

import tracemalloc
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import sklearn.metrics as sk

from tfft.evaluation import multilabel_metrics
from tfft.spec import Reliability, Table
from tfft.tasks import TASKS

TASK = TASKS["image_multilabel"]


def make_rows(seed=0, count=60, labels=5, ties=False):
    generator = np.random.default_rng(seed)
    truth = (generator.uniform(size=(count, labels)) < [0.5, 0.1, 0.3, 0.8, 0.0]).astype(np.float32)
    logits = generator.normal(size=(count, labels)) + truth
    return (logits.round() if ties else logits).astype(np.float32), truth


@pytest.mark.parametrize("ties", [False, True])
def test_headline_equals_scikit_learn(ties):
    logits, truth = make_rows(ties=ties)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    limits = np.array([0.4, 0.5, 0.6, 0.3, 0.5])
    predicted = p >= limits
    headline = TASK.metrics(logits, truth, {"thresholds": limits})
    for name in ("micro", "macro"):
        expected = sk.f1_score(truth, predicted, average=name, zero_division=0)
        assert headline[f"{name}_f1"] == pytest.approx(expected)
    assert headline["micro_precision"] == pytest.approx(
        sk.precision_score(truth, predicted, average="micro")
    )
    assert headline["micro_recall"] == pytest.approx(
        sk.recall_score(truth, predicted, average="micro")
    )
    assert headline["exact_match"] == pytest.approx(sk.accuracy_score(truth, predicted))
    expected = sk.average_precision_score(truth[:, :4], p[:, :4], average="macro")
    assert headline["mean_average_precision"] == pytest.approx(expected)
    expected = np.mean([sk.log_loss(truth[:, i], p[:, i], labels=[0, 1]) for i in range(5)])
    assert headline["log_loss"] == pytest.approx(expected)


def test_by_label_equals_scikit_learn():
    logits, truth = make_rows(1)
    details = TASK.details(logits, SimpleNamespace(targets=truth), list("abcde"), {})
    p = multilabel_metrics.sigmoid(logits)
    expected = sk.precision_recall_fscore_support(truth, p >= 0.5, zero_division=0)
    table, reliability = details.sections
    assert isinstance(table, Table) and isinstance(reliability, Reliability)
    assert table.header[:4] == ["class", "precision", "recall", "f1"] and table.header[-1] == "rows"
    for index, row in enumerate(table.rows[:4]):
        np.testing.assert_allclose([*row[1:4], row[-1]], [v[index] for v in expected])
    assert table.rows[4] == ["e", "", "", "", "", "", 0]  # no row has the label
    assert details.wrong.sum() == (~((p >= 0.5) == (truth > 0)).all(1)).sum()
    description = details.describe(3)
    assert description["label"] == "|".join(n for n, t in zip("abcde", truth[3], strict=True) if t)
    assert description["about"] == int(np.abs(p[3] - truth[3]).argmax())


def test_calibration_error_by_hand():
    p = np.array([[0.05, 0.95], [0.05, 0.95]])
    truth = np.array([[0.0, 1.0], [1.0, 1.0]])
    # Two pairs at 0.05, half of them true; two at 0.95, all of them.
    assert multilabel_metrics.calibration_error(p, truth) == pytest.approx((0.45 + 0.05) / 2)


def test_bootstrap_draw_equals_metrics_of_the_drawn_rows():
    """Each draw is recomputed by repeating rows and calling scikit-learn."""
    logits, truth = make_rows(2, 30)
    samples = TASK.bootstrap(logits, truth, 20, 7, {})
    weights = np.random.default_rng(7).multinomial(30, np.full(30, 1 / 30), size=20)
    for draw in range(20):
        positions = np.repeat(np.arange(30), weights[draw])
        drawn_truth, p = truth[positions], multilabel_metrics.sigmoid(logits[positions])
        has_rows = drawn_truth.any(axis=0)
        expected = sk.average_precision_score(
            drawn_truth[:, has_rows], p[:, has_rows], average="macro"
        )
        assert samples["mean_average_precision"][draw] == pytest.approx(expected)
        expected = sk.f1_score(drawn_truth, p >= 0.5, average="micro")
        assert samples["micro_f1"][draw] == pytest.approx(expected)
        expected = sk.accuracy_score(drawn_truth, p >= 0.5)
        assert samples["exact_match"][draw] == pytest.approx(expected)


@pytest.mark.parametrize("ties", [False, True])
def test_thresholds_maximise_f1(ties):
    logits, truth = make_rows(3, 40, ties=ties)
    p = multilabel_metrics.sigmoid(logits)
    limits = TASK.fit(logits, truth, {})["thresholds"]
    assert limits[4] == 0.5  # no row has the label
    for label in range(4):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores = [
                sk.f1_score(truth[:, label], p[:, label] >= t) for t in np.unique(p[:, label])
            ]
        actual = sk.f1_score(truth[:, label], p[:, label] >= limits[label])
        assert actual == pytest.approx(max(scores))


def test_tag_of_all_rows_keeps_the_default_threshold():
    targets = np.array([[1, 0], [1, 1], [1, 0]])
    assert TASK.fit(np.zeros((3, 2), np.float32), targets, {})["thresholds"][0] == 0.5


def test_bootstrap_memory_is_bounded_with_many_tags():
    """One metric by label takes 32 MB for 100 draws of 40,000 labels."""
    generator = np.random.default_rng(0)
    truth = (generator.random((6, 40_000)) < 0.3).astype(np.float32)
    probabilities = generator.random(truth.shape)
    tracemalloc.start()
    samples = multilabel_metrics.bootstrap(probabilities, truth, probabilities > 0.5, 100, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150 * 2**20
    headline = multilabel_metrics.headline(probabilities, truth, probabilities > 0.5)
    assert np.mean(samples["micro_f1"]) == pytest.approx(headline["micro_f1"], abs=0.01)
