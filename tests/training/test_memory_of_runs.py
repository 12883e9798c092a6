"""Runs one after another in one process, as in a notebook: what is finished is given back."""

import gc
import weakref

from tests.conftest import one_epoch
from tfft import train
from tfft.config import parse
from tfft.training import memory

RUNS = 10
BOUND = 20  # MiB over all runs; a run that is kept alive holds 8 with its graphs


def test_finished_runs_leave_nothing_behind(tiny, tmp_path):
    """Neither their models, graphs and data nor memory that grows with their number."""
    finished, resident = [], []
    for number in range(1 + RUNS):  # the first also does what is done once in a process
        folder = tmp_path / str(number)
        folder.mkdir()
        config = one_epoch(tiny, folder, method={"name": "head"}, export={"enabled": False})
        run = train.run(parse(config), folder / "run")
        finished += [weakref.ref(x) for x in (run, run.model, run.datasets, run.model.optimizer)]
        del run
        resident.append(memory.resident() / 2**20)
    gc.collect()
    assert [kept() for kept in finished if kept() is not None] == []
    assert resident[-1] - resident[0] < BOUND, resident
