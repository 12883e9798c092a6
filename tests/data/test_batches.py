"""Batches by length: the lengths of their buckets, the plan of an epoch, padding."""

import numpy as np
import pytest

from tests.data.conftest import build_splits
from tfft.data import batches


def brute_force(lengths, max_buckets):
    from itertools import combinations

    rounded = -(-lengths // 8) * 8
    values = sorted(set(rounded.tolist()))
    best = None
    for num_edges in range(1, min(max_buckets, len(values)) + 1):
        for inner in combinations(values[:-1], num_edges - 1):
            edges = np.array([*inner, values[-1]])
            cost = edges[np.searchsorted(edges, lengths)].sum()
            best = cost if best is None else min(best, cost)
    return best


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_bucket_lengths_are_optimal(count):
    lengths = np.random.default_rng(count).geometric(0.03, 300)
    edges = np.array(batches.choose_bucket_lengths(lengths, count))
    assert len(edges) <= count and (edges % 8 == 0).all()
    assert edges[np.searchsorted(edges, lengths)].sum() == brute_force(lengths, count)


def test_plan_covers_every_row_once():
    lengths = np.random.default_rng(0).integers(3, 60, 205)
    bucket_lengths = batches.choose_bucket_lengths(lengths, 4)
    plan = batches.plan(lengths, 16, bucket_lengths, seed=1, epoch=2)
    assert len(plan) == 13  # ceil(205 / 16)
    assert sorted(np.concatenate([b.positions for b in plan])) == list(range(205))
    assert sum(len(b.positions) < 16 for b in plan) == 1
    assert all((lengths[b.positions] <= b.width).all() and b.width in bucket_lengths for b in plan)
    repeated = batches.plan(lengths, 16, bucket_lengths, seed=1, epoch=2)
    assert all((a.positions == b.positions).all() for a, b in zip(plan, repeated, strict=True))
    next_epoch = batches.plan(lengths, 16, bucket_lengths, seed=1, epoch=3)
    assert any(
        len(a.positions) != len(b.positions) or (a.positions != b.positions).any()
        for a, b in zip(plan, next_epoch, strict=True)
    )


def test_rows_of_one_unit_are_spread_over_the_batches_of_their_width():
    # 40 contexts with five questions each, which have the lengths of their contexts.
    units = np.repeat(np.arange(40), 5)
    lengths = np.repeat(np.random.default_rng(0).integers(20, 200, 40), 5)
    widths = batches.choose_bucket_lengths(lengths, 4)
    shared = {}
    for name, known in (("independent", None), ("spread", units)):
        plan = batches.plan(lengths, 8, widths, 1, 2, known)
        assert sorted(np.concatenate([b.positions for b in plan])) == list(range(200))
        assert all((lengths[b.positions] <= b.width).all() for b in plan)
        shared[name] = sum(len(b.positions) - len(set(units[b.positions])) for b in plan)
    assert shared["spread"] < shared["independent"] / 3
    # Every row may come first, and another epoch has other batches.
    orders = [batches.plan(lengths, 8, widths, 1, epoch, units) for epoch in (2, 3)]
    first, second = ([tuple(b.positions) for b in plan] for plan in orders)
    assert not set(first) & set(second)


def test_padding_share():
    lengths = np.array([8, 8, 4])
    plan = batches.plan_sorted(lengths, 3)
    assert batches.padding_share(lengths, plan) == pytest.approx(1 - 20 / 24)


def test_dataset_pads_tokens_and_keeps_weights(config):
    data, inputs = build_splits(config)
    plan = batches.plan_sorted(data.test.lengths, 8)
    weights = np.array([1.0, 2.0, 3.0], np.float32)
    rows, row_weights = batches.Tokens(data.test, inputs.pad_id), weights[data.test.targets]
    num_rows = 0
    dataset = batches.dataset(rows, batches.RowTargets(data.test.targets, row_weights), plan)
    for arrays, labels, weight in dataset:
        np.testing.assert_array_equal(weight, weights[labels])
        mask = arrays["padding_mask"].numpy()
        assert (arrays["token_ids"].numpy()[mask == 0] == inputs.pad_id).all()
        assert (mask.sum(1) >= 3).all()
        num_rows += len(labels)
    assert num_rows == len(data.test)
