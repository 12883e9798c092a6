"""Runs one after another in one process, as in a notebook: finished runs free their memory."""

import gc
import weakref

from tests.conftest import one_epoch
from tfft import train
from tfft.config import parse
from tfft.training import memory

RUNS = 10
BOUND = 20  # MiB over all runs; a run that stays alive holds 8 with its graphs


def test_finished_runs_free_their_memory(tiny, tmp_path):
    """No model, graph or data stays alive, and the memory does not grow with the number of runs."""
    references, resident = [], []
    for number in range(1 + RUNS):  # the first run also pays what is allocated once a process
        folder = tmp_path / str(number)
        folder.mkdir()
        config = one_epoch(tiny, folder, method={"name": "head"}, export={"enabled": False})
        run = train.run(parse(config), folder / "run")
        references += [weakref.ref(x) for x in (run, run.model, run.datasets, run.model.optimizer)]
        del run
        resident.append(memory.resident() / 2**20)
    gc.collect()
    assert [reference() for reference in references if reference() is not None] == []
    assert resident[-1] - resident[0] < BOUND, resident
