"""Metrics of predicted numbers against SciPy and scikit-learn."""

import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as sk

from tfft.evaluation import regression_metrics


def make_rows(rows=200, columns=2, ties=False, offset=0.0):
    generator = np.random.default_rng(0)
    true = generator.normal(offset, 3, (rows, columns))
    predicted = true + generator.normal(0.5, 2, (rows, columns))
    return tuple((x.round() if ties else x).astype(np.float32) for x in (predicted, true))


def reference(predicted, true):
    """The metrics of one column, in float64."""
    predicted, true = predicted.astype(np.float64), true.astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # correlations of constants
        pearson = scipy.stats.pearsonr(predicted, true).statistic
        spearman = scipy.stats.spearmanr(predicted, true).statistic
    return {
        "r2": sk.r2_score(true, predicted),
        "pearson": np.nan_to_num(pearson),
        "spearman": np.nan_to_num(spearman),
        "rmse": sk.root_mean_squared_error(true, predicted),
        "mae": sk.mean_absolute_error(true, predicted),
    }


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("offset", [0.0, 5000.0])
def test_metrics_equal_the_references(ties, offset):
    predicted, true = make_rows(ties=ties, offset=offset)
    expected = [reference(p, t) for p, t in zip(predicted.T, true.T, strict=True)]
    columns = regression_metrics.by_column(predicted, true)
    headline = regression_metrics.headline(predicted, true)
    for name in regression_metrics.NAMES:
        np.testing.assert_allclose(columns[name], [e[name] for e in expected], rtol=1e-6)
        assert headline[name] == pytest.approx(np.mean([e[name] for e in expected]), rel=1e-6)


def test_constants_have_finite_metrics():
    true = np.array([[1.0], [2.0], [4.0]])
    constant = np.full((3, 1), 0.5)
    for predicted, expected in ((constant, true), (true, constant), (constant, constant)):
        actual = regression_metrics.headline(predicted, expected)
        wanted = reference(predicted[:, 0], expected[:, 0])
        assert actual == pytest.approx(wanted, abs=1e-12)


def test_resamples_of_equal_numbers_have_no_variation():
    """Rounding leaves a variation that R2 must not be divided by."""
    generator = np.random.default_rng(0)
    for rows in range(13, 30):
        true = np.full((rows, 1), 0.1, np.float32)
        true[:2] = [[3.7], [-1.3]]
        predicted = true + generator.normal(0, 0.1, true.shape).astype(np.float32)
        samples = regression_metrics.bootstrap(predicted, true, 1000, 0)
        assert np.abs(samples["r2"]).max() < 1e4 and np.abs(samples["pearson"]).max() <= 1 + 1e-9


def test_numbers_of_any_unit_and_nan():
    predicted, true = make_rows()
    expected = regression_metrics.headline(predicted, true)
    small = regression_metrics.headline(
        predicted.astype(np.float64) * 1e-14, true.astype(np.float64) * 1e-14
    )
    for name in ("r2", "pearson", "spearman"):
        assert small[name] == pytest.approx(expected[name], rel=1e-6)
    diverged = regression_metrics.headline(predicted * np.nan, true)
    assert np.isnan([diverged[name] for name in ("r2", "pearson", "rmse", "mae")]).all()


@pytest.mark.parametrize("ties", [False, True])
def test_bootstrap_draw_equals_metrics_of_the_drawn_rows(ties):
    predicted, true = make_rows(30, 1, ties)
    samples = regression_metrics.bootstrap(predicted, true, 20, 7)
    weights = np.random.default_rng(7).multinomial(30, np.full(30, 1 / 30), size=20)
    for draw in range(20):
        positions = np.repeat(np.arange(30), weights[draw])
        expected = reference(predicted[positions, 0], true[positions, 0])
        for name in regression_metrics.NAMES:
            assert samples[name][draw] == pytest.approx(expected[name], rel=1e-6), name
