"""Metrics against scikit-learn and numpy."""

import tracemalloc

import numpy as np
import pytest

from tfft.evaluation import metrics

sklearn = pytest.importorskip("sklearn.metrics")


@pytest.fixture
def case():
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 4, 300)
    logits = generator.normal(size=(300, 5)).astype(np.float32)
    logits[np.arange(300), labels] += 1.0
    return logits, labels  # the fifth class never occurs, but is predicted


def test_headline_matches_scikit_learn(case):
    logits, labels = case
    actual = metrics.headline(logits, labels)
    p = metrics.softmax(logits)
    predicted = p.argmax(1)
    assert actual["accuracy"] == pytest.approx(sklearn.accuracy_score(labels, predicted))
    for average in ("macro", "weighted"):
        expected = sklearn.f1_score(labels, predicted, average=average, zero_division=0)
        assert actual[f"{average}_f1"] == pytest.approx(expected)
    expected = sklearn.log_loss(labels, p, labels=range(5))
    assert actual["log_loss"] == pytest.approx(expected, rel=1e-6)


def test_by_class_matches_scikit_learn(case):
    logits, labels = case
    predicted = logits.argmax(1)
    matrix = metrics.confusion(predicted, labels, 5)
    np.testing.assert_array_equal(
        matrix.matrix(np.arange(5)), sklearn.confusion_matrix(labels, predicted, labels=range(5))
    )
    actual = metrics.from_confusion(matrix)
    expected = sklearn.precision_recall_fscore_support(
        labels, predicted, labels=range(5), zero_division=0
    )
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose(actual[name], values)


def test_calibration_error_by_hand():
    # Two rows at 0.9 (one right), two at 0.6 (both right).
    logits = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]]))
    labels = np.array([0, 1, 0, 0])
    expected = (2 * abs(0.9 - 0.5) + 2 * abs(0.6 - 1.0)) / 4
    assert metrics.calibration_error(metrics.softmax(logits), labels) == pytest.approx(expected)


def test_bootstrap_intervals_cover_the_metric(case):
    logits, labels = case
    samples = metrics.bootstrap(logits, labels, 2000, 0)
    headline = metrics.headline(logits, labels)
    for name in ("accuracy", "macro_f1", "weighted_f1", "log_loss"):
        low, high = metrics.interval(samples[name], 0.95)
        assert low < headline[name] < high
    # The accuracy has the standard error of a binomial proportion.
    p = headline["accuracy"]
    assert samples["accuracy"].std() == pytest.approx(np.sqrt(p * (1 - p) / 300), rel=0.1)


def macro_f1(labels, predicted):
    """Average 2 TP / (rows + predictions) over the classes that occur in either."""
    counts = np.bincount(labels, minlength=5) + np.bincount(predicted, minlength=5)
    hits = np.bincount(labels[labels == predicted], minlength=5)
    return (2 * hits[counts > 0] / counts[counts > 0]).mean()


def test_bootstrap_equals_resampling_rows(case):
    """Draws of confusion cells have the distribution of resampled rows."""
    logits, labels = case
    predicted = logits.argmax(1)
    generator = np.random.default_rng(1)
    from_rows = []
    for draw in range(2000):
        rows = generator.integers(0, 300, 300)
        from_rows.append(macro_f1(labels[rows], predicted[rows]))
        if draw < 50:  # scikit-learn takes milliseconds per call
            expected = sklearn.f1_score(
                labels[rows], predicted[rows], average="macro", zero_division=0
            )
            assert from_rows[-1] == pytest.approx(expected, abs=1e-12)
    from_cells = metrics.bootstrap(logits, labels, 2000, 2)["macro_f1"]
    assert np.mean(from_cells) == pytest.approx(np.mean(from_rows), abs=0.003)
    assert np.std(from_cells) == pytest.approx(np.std(from_rows), rel=0.15)


def test_bootstrap_memory_is_bounded_with_many_classes():
    """A dense matrix takes 1.3 GB for 1,000 draws of 400 classes, and 18 GB for one of 47,000."""
    generator = np.random.default_rng(0)
    tracemalloc.start()
    for classes, rows in ((400, 2000), (47_000, 50)):
        labels = generator.integers(classes - 50, classes, rows, dtype=np.int32)
        logits = np.zeros((rows, classes), np.float32)
        logits[np.arange(rows), generator.permutation(labels)] = 9.0
        samples = metrics.bootstrap(logits, labels, 1000, 0)
        headline = metrics.headline(logits, labels)
        assert np.mean(samples["accuracy"]) == pytest.approx(headline["accuracy"], abs=0.03)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300 * 2**20
    matrix = metrics.confusion(logits.argmax(1), labels, classes)
    expected = sklearn.confusion_matrix(labels, logits.argmax(1), labels=range(46_950, 47_000))
    np.testing.assert_array_equal(matrix.matrix(np.arange(46_950, 47_000)), expected)
    expected_f1 = sklearn.f1_score(labels, logits.argmax(1), average="macro", zero_division=0)
    assert headline["macro_f1"] == pytest.approx(expected_f1)
