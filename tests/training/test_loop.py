"""The loop: strategies, several steps at once, micro-batches, guards, files, rehearsal."""

import copy
import json
import logging
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import yaml
from safetensors.numpy import load_file, save_file

import tfft
from tests.conftest import one_epoch, whole_config
from tfft.data import batches
from tfft.model import Model
from tfft.training import dry_run, memory
from tfft.training.callbacks import Interrupt, Save
from tfft.utils.errors import Interrupted, UserError

MIRRORED = {"strategy": "mirrored", "devices": ["CPU:0", "CPU:1"]}


@pytest.fixture(scope="module")
def base_config(tiny, tmp_path_factory):
    """Without dropout, and with a partial last batch: 96 training rows, 20 a batch."""
    config = whole_config(tiny, tmp_path_factory.mktemp("data"))
    config["model"]["dropout"], config["task"] = 0.0, {"dropout": 0.0}
    config["train"] |= {
        "batch_size": 20,
        "validate_every": "4 steps",
        "checkpoint": {"every": "3 steps", "keep": 9},
    }
    return config


@pytest.fixture
def plain_config(base_config):
    return copy.deepcopy(base_config)


@pytest.fixture
def config(plain_config):
    """The same without a test split."""
    plain_config["data"]["test"] = None
    return plain_config


def run_of_module(config, tmp_path_factory, **changes):
    """Train for all tests of the module; they only read the run."""
    return tfft.train(config, workdir=tmp_path_factory.mktemp("shared") / "run", **changes)


@pytest.fixture(scope="module")
def plain(base_config, tmp_path_factory):
    return run_of_module(base_config, tmp_path_factory)


DROPOUT_ONE_SHAPE = {  # XLA compiles every shape of a batch
    "data": {"validation": None, "test": None},
    "model": {"dropout": 0.1},
    "train": {"buckets": 1},
}


@pytest.fixture(scope="module")
def with_dropout(base_config, tmp_path_factory):
    return run_of_module(base_config, tmp_path_factory, **DROPOUT_ONE_SHAPE)


@pytest.fixture(scope="module")
def observed(base_config, tmp_path_factory):
    """A run that is profiled and writes checkpoints by the clock."""
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    changes = {"profile": [2, 3], "checkpoint": {"every": "0.00001 minutes", "keep": 99}}
    changes |= {"cache_features": False}  # above a cached prefix, several steps are one look
    return run_of_module(base_config, tmp_path_factory, train=changes, method={"name": "head"})


def run(config, workdir, **changes):
    return tfft.train(config, workdir=workdir, **changes)


def weights(result):
    return {v.path: np.array(v.numpy()) for v in result.model.weights}


def largest_difference(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    return max(np.abs(a[path] - b[path]).max() for path in a)


def logged(result):
    lines = (json.loads(line) for line in (result.workdir / "metrics.jsonl").open())
    return [{k: v for k, v in line.items() if k != "time"} for line in lines]


def test_two_replicas_make_the_same_model(plain, plain_config, tmp_path):
    plain_config["export"] = {"enabled": True}
    one = plain
    two = run(plain_config, tmp_path / "two", distribute=MIRRORED)
    assert largest_difference(one, two) < 1e-5
    assert two.metrics["test/accuracy"] == one.metrics["test/accuracy"]
    assert two.metrics["test/log_loss"] == pytest.approx(one.metrics["test/log_loss"], abs=1e-5)
    for a, b in zip(logged(one), logged(two), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    facts = json.loads((tmp_path / "two" / "run.json").read_text())
    assert facts["device"]["replicas"] == 2
    assert (tmp_path / "two" / "export" / "1" / "saved_model.pb").is_file()
    rows = ["a red sky", "the blue apple", "green"]
    np.testing.assert_allclose(two.logits(rows), one.logits(rows), atol=1e-5)
    np.testing.assert_allclose(tfft.load(two.workdir).logits(rows), one.logits(rows), atol=1e-5)


@pytest.mark.parametrize("changes", [{}, MIRRORED], ids=["one", "mirrored"])
def test_interrupted_and_resumed_with_averages_and_dropout(config, tmp_path, monkeypatch, changes):
    config["model"]["dropout"] = 0.1
    config["optimizer"]["ema"] = 0.8
    config["distribute"] = changes
    whole = run(config, tmp_path / "whole")
    original = Interrupt.on_train_batch_end

    def stop_at_7(self, batch, logs=None):
        self.stop_requested |= self._state.step == 7
        original(self, batch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(Interrupt, "on_train_batch_end", stop_at_7)
        with pytest.raises(Interrupted, match="interrupted at step 7 of 10"):
            run(config, tmp_path / "parts")
    parts = run(config, tmp_path / "parts")
    bound = 1e-5 if changes else 0
    assert largest_difference(whole, parts) <= bound
    for a, b in zip(logged(whole), logged(parts), strict=True):
        assert a == pytest.approx(b, abs=1e-12 + bound)


def test_averages_are_what_is_kept(plain, plain_config, tmp_path):
    mean = run(plain_config, tmp_path / "mean", optimizer={"ema": 0.9})
    assert largest_difference(plain, mean) > 1e-4
    assert largest_difference(tfft.load(tmp_path / "mean"), mean) == 0


def test_several_steps_at_once_are_the_same_steps(plain, plain_config, tmp_path):
    one = plain
    many = run(plain_config, tmp_path / "many", train={"steps_per_execution": 7})
    assert largest_difference(one, many) == 0
    kept = [sorted(p.name for p in (r.workdir / "checkpoints").iterdir()) for r in (one, many)]
    assert kept[0] == kept[1] and len(kept[0]) == 4  # 3, 6, 9, 10

    def validated(result):
        return [line for line in logged(result) if "validation/accuracy" in line]

    assert validated(one) == validated(many) and len(validated(one)) == 3  # 4, 8, 10


def test_micro_batches_change_nothing_but_memory(plain, plain_config, tmp_path):
    cut = run(plain_config, tmp_path / "cut", train={"micro_batch": 7})
    assert cut.model.micro_batch == 7
    assert largest_difference(plain, cut) < 1e-5


def test_the_micro_batch_that_fits(config, tmp_path, monkeypatch, capfd):
    """The peak of a row is made up, the search and the training with what it finds are real."""
    peaks = []

    def peak_of(function):
        function()
        peaks.append(1)
        return 1000 + 100 * (1 if len(peaks) == 1 else 2)

    monkeypatch.setattr(memory, "resident", lambda name="VmRSS": 1000)
    monkeypatch.setattr(memory, "peak_of", peak_of)
    monkeypatch.setattr(memory, "available", lambda: 300)
    result = run(config, tmp_path / "run", train={"batch_size": "auto"}, data={"validation": None})
    assert result.config.train.batch_size == 32  # the default: `auto` is about the pieces
    assert result.model.micro_batch == 4  # 100 + 50 * (4 - 2) <= 240 < 100 + 50 * (8 - 2)
    assert "micro-batch: 4 of 32 rows" in capfd.readouterr().err


def test_rows_that_fit_by_the_growth_of_the_peak(monkeypatch):
    monkeypatch.setattr(memory, "resident", lambda name="VmRSS": 0)
    monkeypatch.setattr(memory, "available", lambda: 1000)
    tried = []

    def run(size):
        tried.append(size)
        return True

    monkeypatch.setattr(memory, "peak_of", lambda function: function() and 100 + 50 * tried[-1])
    assert memory.by_measuring(run, 64) == 8  # 100 + 50 * 8 <= 800 < 100 + 50 * 16
    assert tried == [4, 8]
    monkeypatch.setattr(memory, "available", lambda: 100)
    with pytest.raises(UserError, match="not even one row fits"):
        memory.by_measuring(run, 64)


def test_the_peak_is_seen():
    def use():
        return np.ones(30_000_000).sum()  # 240 MB

    quiet, used = memory.peak_of(lambda: None), memory.peak_of(use)
    assert used - quiet > 200e6
    assert memory.available() > 100e6


def test_rows_that_fit_by_trying():
    assert memory.by_trying(lambda size: size <= 5, 32) == 4
    with pytest.raises(UserError, match="not even one row fits"):
        memory.by_trying(lambda size: False, 32)


@pytest.mark.slow
def test_out_of_memory_is_a_line_with_what_works(config, tmp_path, monkeypatch):
    original = Model._gradients

    def hungry(self, x, y, weight, total):
        """Needs more than there is, for more than 5 rows."""
        rows = tf.shape(y)[0]
        size = tf.where(rows > 5, 1 << 46, 1)
        kept = tf.reduce_sum(tf.random.stateless_uniform([size], [1, 2]))
        loss, gradients = original(self, x, y, weight, total)
        return loss + tf.minimum(kept, 0.0), gradients

    monkeypatch.setattr(Model, "_gradients", hungry)
    with pytest.raises(UserError) as error:
        run(config, tmp_path / "run")
    text = str(error.value)
    assert "out of memory with 20 rows of 1" in text
    assert "the largest size that worked is 5: set train.micro_batch: 5, or auto" in text
    result = run(config, tmp_path / "less", train={"micro_batch": 5})
    assert result.metrics["steps"] == 10


def test_out_of_memory_outside_of_a_step_is_a_line():
    line = r"^out of memory: a tensor of 1048576 x 67108864 on .*CPU"
    with pytest.raises(UserError, match=line), memory.out_of_memory_errors():
        tf.ones([1 << 20, 1 << 26])
    with pytest.raises(ZeroDivisionError), memory.out_of_memory_errors():
        1 / 0  # noqa: B018


def test_what_a_failed_step_left_is_not_in_the_way_of_the_next(config, tmp_path, monkeypatch):
    rehearse, failures = dry_run._dry_step, []

    def leaving(model, feed):
        """As TensorFlow does where temporary variables of the failed graph are still there."""
        if not failures:
            failures.append(model.again)
            raise tf.errors.ResourceExhaustedError(None, None, "OOM")
        if model.again == 0:
            failures.append(model.again)
            raise tf.errors.AlreadyExistsError(None, None, "tmp_var")
        rehearse(model, feed)

    monkeypatch.setattr(dry_run, "_dry_step", leaving)
    with pytest.raises(UserError, match="the largest size that worked is 10"):
        run(config, tmp_path / "run")
    assert len(failures) == 2


def test_the_rehearsal_changes_nothing(with_dropout, config, tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "_dry_step", lambda model, feed: None)
    without = run(config, tmp_path / "without", **DROPOUT_ONE_SHAPE)
    assert largest_difference(with_dropout, without) == 0


@pytest.fixture
def poisoned(monkeypatch):
    """The third batch of an iteration has weights that are not numbers."""
    original = batches.dataset

    def dataset(*arguments):
        def poison(at, element):
            inputs, labels, weight = element
            return inputs, labels, tf.where(at == 2, float("nan"), weight)

        return original(*arguments).enumerate().map(poison)

    monkeypatch.setattr(batches, "dataset", dataset)


def test_a_loss_that_is_not_finite_stops_with_its_rows(config, tmp_path, poisoned):
    changes = {"checkpoint": {"every": "2 steps"}}
    with pytest.raises(UserError) as error:
        run(config, tmp_path / "run", train=changes)
    assert "the loss is nan at step 3; lower optimizer.learning_rate" in str(error.value)
    assert "The last checkpoint is kept (the batch: rows " in str(error.value)
    kept = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert kept == ["step_00000002"]


def test_it_may_be_left_out(config, tmp_path, poisoned, capfd):
    result = run(config, tmp_path / "run", train={"skip_non_finite": 1})
    assert "the loss is nan at step 3: skipped, 1 of at most 1 (the batch" in capfd.readouterr().err
    assert result.metrics["steps"] == 10
    assert all(np.isfinite(value).all() for value in weights(result).values())
    assert all(np.isfinite(list(line.values())).all() for line in logged(result))


def appears(monkeypatch, name, step, workdir):
    """A file in the run directory after a step."""
    original = Save.on_train_batch_end

    def on_train_batch_end(self, batch, logs=None):
        if self._state.step == step:
            (workdir / name).touch()
        original(self, batch, logs)

    monkeypatch.setattr(Interrupt, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(Save, "on_train_batch_end", on_train_batch_end)


def test_a_file_stops_the_run(plain, plain_config, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        appears(patch, "STOP", 2, workdir)  # no step at which a checkpoint is due
        with pytest.raises(Interrupted, match="interrupted at step 2 of 10, which is saved"):
            run(plain_config, workdir)
    assert not (workdir / "STOP").exists()
    assert largest_difference(plain, run(plain_config, workdir)) == 0


def test_a_file_saves_the_run(config, tmp_path, monkeypatch, capfd):
    workdir = tmp_path / "run"
    appears(monkeypatch, "SAVE", 3, workdir)
    changes = {"checkpoint": {"every": "1 epochs", "keep": 9}, "cache_features": False}
    run(config, workdir, train=changes, method={"name": "head"})
    assert "saved at step 3 on request" in capfd.readouterr().err
    names = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    assert names == [f"step_{step:08d}" for step in (3, 5, 10)]


def test_checkpoints_by_the_clock(observed):
    assert len(list((observed.workdir / "checkpoints").iterdir())) == 10


def test_a_profile_of_some_steps(observed):
    assert list((observed.workdir / "profile").rglob("*.xplane.pb"))


def test_remat_and_xla_from_the_config(with_dropout, config, tmp_path, capfd):
    for section, changes in DROPOUT_ONE_SHAPE.items():
        config[section] |= changes
    remat = run(config, tmp_path / "remat", train={"remat": ["embeddings", "block_0"]})
    assert "remat: embeddings, block_0" in capfd.readouterr().err
    assert largest_difference(with_dropout, remat) < 1e-5
    xla = run(config, tmp_path / "xla", train={"jit_compile": True})
    assert xla.model.xla
    assert largest_difference(with_dropout, xla) < 1e-4
    with pytest.raises(UserError, match=r"train\.remat: no stage 'block_7'; did you mean 'block_"):
        run(config, tmp_path / "typo", train={"remat": ["block_7"]})


def test_without_determinism_it_trains_the_same(plain, plain_config, tmp_path):
    """In a process of its own: once on, determinism stays on."""
    path, workdir = tmp_path / "config.yaml", tmp_path / "loose"
    path.write_text(yaml.safe_dump(plain_config))
    command = [sys.executable, "-m", "tfft.cli", "train", f"--config={path}"]
    command += [f"--workdir={workdir}", "--set=train.deterministic=false"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert largest_difference(plain, tfft.load(workdir)) < 1e-5


def test_a_static_shape_keeps_the_mean(plain):
    """What a TPU would get: one shape, filler rows that count nothing."""
    train = plain.datasets.train
    plan = batches.plan(train.lengths, 20, batches.widths(train.lengths, 1), 0, 0)
    shape = (10, 16)
    for replica in range(2):
        pieces = batches.Pieces((replica,), 2)
        weights = np.ones(len(train), np.float32)
        rows = batches.Tokens(train, 0)
        made = batches.dataset(rows, train.labels, weights, plan, pieces, shape)
        assert made.element_spec[0]["token_ids"].shape == shape
        elements = list(made)
        assert len(elements) == len(plan)
        for batch, (inputs, labels, weight) in zip(plan, elements, strict=True):
            own = next(pieces.cut(batch)).positions
            assert inputs["token_ids"].shape == shape
            assert (inputs["padding_mask"].numpy().sum(axis=1) > 0).all()
            # The mean over all 20 places is that over the rows that there are.
            assert weight.numpy().sum() / 20 == pytest.approx(len(own) / len(batch.positions))
            assert (weight.numpy()[len(own) :] == 0).all()
            np.testing.assert_array_equal(labels[: len(own)], train.labels[own])


def test_killed_after_the_last_step_it_writes_the_last_weights(tiny, tmp_path):
    """Nothing is validated, so that best/ holds the weights before training until the end."""
    config = one_epoch(tiny, tmp_path, method={"name": "head"}, export={"enabled": False})
    whole = run(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    (tmp_path / "killed" / "metrics.json").unlink()
    path = tmp_path / "killed" / "best" / "weights.safetensors"
    before = load_file(path)
    save_file({name: np.zeros_like(value) for name, value in before.items()}, path)
    resumed = run(config, tmp_path / "killed")
    assert largest_difference(whole, resumed) == 0
    np.testing.assert_equal(load_file(path), before)
