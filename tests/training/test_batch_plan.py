"""The batch plan: a resumed training takes the batches that an undisturbed one would take."""

from types import SimpleNamespace

import numpy as np
import pytest

from tfft.config import parse
from tfft.training.batch_plan import BatchPlan

ROWS, EPOCHS = 23, 3
CONFIG = parse(
    {
        "data": {"train": "rows.csv"},
        "model": {"backbone": "hf:x/y"},
        "train": {"epochs": EPOCHS, "batch_size": 4, "seed": 7, "buckets": 2},
    }
)


@pytest.fixture(params=[None, 5], ids=["independent rows", "units"])
def data(request):
    """Training rows of different lengths, so that there are several widths."""
    lengths = np.random.default_rng(0).integers(3, 30, ROWS)
    units = None if request.param is None else np.arange(ROWS) % request.param
    return SimpleNamespace(train=SimpleNamespace(lengths=lengths, units=units))


@pytest.fixture
def plan(data):
    return BatchPlan.create(CONFIG, data)


def as_tuples(batch_iterator):
    return [(tuple(batch.positions), batch.width, batch.draw) for batch in batch_iterator]


def test_a_plan_has_all_steps_of_all_epochs(data, capfd):
    plan = BatchPlan.create(CONFIG, data)
    assert plan.per_epoch == -(-ROWS // 4)
    assert plan.total == EPOCHS * plan.per_epoch
    assert len(plan.bucket_lengths) == 2 and plan.bucket_lengths[-1] >= data.train.lengths.max()
    assert f"batches: {plan.per_epoch} an epoch, widths " in capfd.readouterr().err


def test_a_static_plan_has_the_largest_width_alone(plan, data):
    assert BatchPlan.create(CONFIG, data, static=True).bucket_lengths == (plan.bucket_lengths[-1],)


def test_each_epoch_takes_each_row_once_in_another_order(plan, data):
    orders = []
    for epoch in range(EPOCHS):
        batches = plan.epoch(data, CONFIG.train, epoch)
        orders.append(np.concatenate([batch.positions for batch in batches]).tolist())
    assert [sorted(order) for order in orders] == [list(range(ROWS))] * EPOCHS
    assert orders[0] != orders[1] != orders[2]


def test_after_step_0_follow_all_epochs(plan, data):
    epochs = [plan.epoch(data, CONFIG.train, epoch) for epoch in range(EPOCHS)]
    expected = [batch for epoch in epochs for batch in epoch]
    assert as_tuples(plan.after(data, CONFIG.train, 0)) == as_tuples(expected)


@pytest.mark.parametrize(
    ("epoch", "steps_in_epoch"),
    [(0, 0), (0, 1), (1, 0), (1, 4), (2, 0)],
    ids=["start", "mid-epoch", "epoch boundary", "mid-epoch 2", "last epoch"],
)
def test_after_a_step_follows_the_tail_of_the_undisturbed_sequence(
    plan, data, epoch, steps_in_epoch
):
    step = epoch * plan.per_epoch + steps_in_epoch
    undisturbed = as_tuples(plan.after(data, CONFIG.train, 0))
    assert as_tuples(plan.after(data, CONFIG.train, step)) == undisturbed[step:]


def test_after_the_last_steps(plan, data):
    undisturbed = as_tuples(plan.after(data, CONFIG.train, 0))
    assert as_tuples(plan.after(data, CONFIG.train, plan.total - 1)) == undisturbed[-1:]
    assert as_tuples(plan.after(data, CONFIG.train, plan.total)) == []


def test_another_seed_takes_other_batches(plan, data):
    other = CONFIG.train.model_copy(update={"seed": 8})
    assert as_tuples(plan.after(data, other, 0)) != as_tuples(plan.after(data, CONFIG.train, 0))
