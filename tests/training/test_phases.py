"""Phases of a training: what is trainable when, and when the train step is traced again."""

import contextlib
import io
from types import SimpleNamespace

import numpy as np
import pytest

import tfft
from tests.conftest import write_csv
from tfft.config import parse
from tfft.model import Model
from tfft.training import loop, phases, run_directory, setup


def base_config(backbone, folder):
    """Return a config of 6 steps an epoch."""
    return {
        "data": {
            "train": str(write_csv(folder / "train.csv", 96)),
            "validation": None,
            "max_length": 16,
        },
        "model": {"backbone": f"hf:{backbone}"},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"epochs": 2, "batch_size": 16},
        "export": {"enabled": False},
    }


@pytest.fixture
def config(tiny, tmp_path):
    return base_config(tiny, tmp_path)


def train_run(config, workdir, **method):
    config["method"] = method
    config["train"] |= {"epochs": 4}
    return tfft.train(config, workdir=workdir)


@pytest.fixture(scope="module")
def gradual(tiny_two_blocks, tmp_path_factory):
    """A gradual run, its trainable stages by first step, its tracings and its log."""
    folder = tmp_path_factory.mktemp("gradual")
    config = base_config(tiny_two_blocks, folder)
    config["train"]["checkpoint"] = {"every": "1 steps", "keep": 30}
    trainable, traced = {}, []
    make_train_function, enter_phase = Model.make_train_function, loop._enter_phase

    def recording_make(self, force=False):
        if force:
            traced.append(len(trainable))
        return make_train_function(self, force)

    def recording_enter(run, pipeline, schedule, step):
        variables = trainable_after(enter_phase, run, pipeline, schedule, step)
        trainable[step] = {v.path.split("/")[0] for v in variables}

    def trainable_after(function, run, *arguments):
        function(run, *arguments)
        return run.model.trainable_variables

    err = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(err):
        patch.setattr(Model, "make_train_function", recording_make)
        patch.setattr(loop, "_enter_phase", recording_enter)
        run = train_run(config, folder / "run", name="gradual", factor=0.5)
    return SimpleNamespace(run=run, trainable=trainable, traced=traced, err=err.getvalue())


def test_gradual_unfreezes_top_down_and_traces_only_there(gradual):
    """Steps 0, 6, 12, 18 of 24 add: head; top block and pooler; the other block; embeddings."""
    assert gradual.trainable == {
        0: {"head"},
        6: {"head", "pooler", "block_1"},
        12: {"head", "pooler", "block_1", "block_0"},
        18: {"head", "pooler", "block_1", "block_0", "embeddings"},
    }
    assert gradual.traced == [0, 1, 2, 3]
    table = (gradual.run.workdir / "mask.txt").read_text()
    rows = {line.split()[0]: line for line in table.splitlines() if line}
    assert rows["block_1"].endswith("0.5 from step 6")
    assert rows["embeddings"].endswith("0.125 from step 18")
    assert rows["head"].endswith(" 1")
    assert "from step 7 on" in gradual.err


def test_a_frozen_stage_does_not_change_until_its_phase(gradual):
    from safetensors.numpy import load_file

    folder = gradual.run.workdir / "checkpoints"
    weights = {
        step: load_file(folder / f"step_{step:08d}" / "state.safetensors")
        for step in (5, 6, 7, 12, 13)
    }
    kernel = "block_0/up/kernel"
    for step in (6, 7, 12):
        np.testing.assert_array_equal(weights[step][kernel], weights[5][kernel])
    assert np.abs(weights[13][kernel] - weights[12][kernel]).max() > 0
    top = "block_1/up/kernel"
    np.testing.assert_array_equal(weights[6][top], weights[5][top])
    assert np.abs(weights[7][top] - weights[6][top]).max() > 0


def test_an_explicit_plan(config, tmp_path):
    run = train_run(
        config,
        tmp_path / "run",
        name="gradual",
        plan=[
            {"at": "0 steps", "stages": ["head"]},
            {"at": "25%", "stages": ["block_*", "pooler"], "learning_rate": 0.1},
        ],
    )
    table = (run.workdir / "mask.txt").read_text()
    assert "0.1 from step 6" in table
    assert any("embeddings" in line and "frozen" in line for line in table.splitlines())


def test_lp_ft_has_two_schedules(config, tmp_path):
    run = train_run(config, tmp_path / "run", name="lp_ft", probe="50%", probe_learning_rate=0.5)
    schedule = run.model.optimizer._learning_rate
    assert schedule.starts == [0, 12]
    assert [s.peak for s in schedule.schedules] == [0.5, 1e-3]
    assert [s.total for s in schedule.schedules] == [12, 12]


def test_a_phase_that_is_never_reached_is_logged(config, tmp_path, capfd):
    config["train"]["epochs"] = 2
    config["method"] = {"name": "gradual"}
    tfft.train(config, workdir=tmp_path / "run")
    assert (
        "the phase at step 12 is never reached: the training has 12 steps" in capfd.readouterr().err
    )


def test_a_schedule_finds_the_phase_of_a_step_and_its_end():
    schedule_phases = tuple(phases.SchedulePhase(s, None) for s in (0, 5, 9))
    schedule = phases.TrainingSchedule(schedule_phases, 12, None, {})
    assert [schedule.at(s).start for s in (0, 4, 5, 8, 9, 11)] == [0, 0, 5, 5, 9, 9]
    assert [schedule.until(s) for s in (0, 4, 5, 9, 11)] == [5, 5, 9, 12, 12]


@pytest.mark.parametrize("decay", [0.5])
def test_layer_decay_counts_from_the_head(config, tiny_two_blocks, tmp_path, decay):
    config["model"]["backbone"] = f"hf:{tiny_two_blocks}"
    config["optimizer"] = {"layer_decay": decay}
    run, data, _, schedule = setup.prepare(parse(config), tmp_path)
    run_directory.describe(run, data, schedule)
    rows = (run.workdir / "mask.txt").read_text().splitlines()
    factors = {line.split()[0]: line.split()[-1] for line in rows[1:6]}
    assert factors == {
        "embeddings": "0.125",
        "block_0": "0.25",
        "block_1": "0.5",
        "pooler": "1",
        "head": "1",
    }
