"""The learning-rate finder."""

import math

import numpy as np
import pytest

from tests.report.drawings import texts
from tfft.config import parse
from tfft.search import lr_finder
from tfft.utils.errors import UserError


def test_rates_rise_by_equal_factors_and_are_plotted(config, tmp_path):
    config["method"] = {"name": "auto"}  # resolved before the run
    curve = lr_finder.find(parse(config), 1e-5, 10.0, 40)
    assert 10 <= len(curve.rates) <= 40
    assert curve.rates[0] == pytest.approx(1e-5)
    ratios = np.diff(np.log(curve.rates))
    np.testing.assert_allclose(ratios, math.log(1e6) / 39, rtol=1e-4)
    assert 1e-5 <= curve.steepest <= curve.rates[-1]
    assert "try --set=optimizer.learning_rate=" in curve.text()
    lr_finder.write(curve, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "log10 of the learning rate" in texts(page)


def test_suggestion_is_where_the_loss_falls_fastest():
    """On a synthetic loss: flat, a cliff at 1e-3, a valley, an explosion."""
    steps = 100
    rates = [1e-6 * 10 ** (6 * i / 99) for i in range(steps)]
    losses = [
        2.0 - 1.5 / (1 + math.exp(-8 * (math.log10(r) + 3))) + (0 if r < 0.3 else 20 * r)
        for r in rates
    ]
    curve = lr_finder._to_curve(losses, 1e-6, 1.0, steps)
    assert 5e-4 < curve.steepest < 1e-2
    assert curve.steepest < curve.lowest


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.01), (0.0, 1.0)])
def test_rates_must_be_in_order(config, low, high):
    with pytest.raises(UserError, match="0 < low < high"):
        lr_finder.find(parse(config), low, high, 30)
