"""Fractional and stratified splits."""

import numpy as np

from tests.data.conftest import build_splits
from tfft.data.splits import stratified, together


def test_stratified_keeps_proportions_and_is_seeded():
    labels = np.repeat([0, 1, 2], [100, 10, 1])
    train, held_out = stratified(labels, 0.2, seed=3)
    assert np.bincount(labels[held_out], minlength=3).tolist() == [20, 2, 0]
    assert sorted([*train, *held_out]) == list(range(111))
    repeated = stratified(labels, 0.2, seed=3)
    np.testing.assert_array_equal(held_out, repeated[1])
    assert not np.array_equal(held_out, stratified(labels, 0.2, seed=4)[1])


def test_fractional_splits_do_not_overlap(config):
    data, _ = build_splits(config, test={"fraction": 0.25})
    rows = [set(s.rows.tolist()) for s in (data.train, data.validation, data.test)]
    assert sum(map(len, rows)) == 120 == len(set.union(*rows))


def test_rows_of_a_unit_stay_together():
    units = np.repeat(np.arange(20), 5)
    train, held_out = together(units, 0.2, seed=3)
    assert len(held_out) == 20 and sorted([*train, *held_out]) == list(range(100))
    assert not set(units[train]) & set(units[held_out])
    np.testing.assert_array_equal(held_out, together(units, 0.2, seed=3)[1])
    assert not np.array_equal(held_out, together(units, 0.2, seed=4)[1])
    assert len(together(np.array([0, 0, 1, 1]), 0.01, seed=0)[1]) == 2
    assert len(together(np.array([0, 0, 1, 1]), 0.99, seed=0)[1]) == 2
    assert len(together(np.zeros(4), 0.5, seed=0)[1]) == 0  # a single unit is kept
