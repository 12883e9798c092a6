"""The loop: strategies, steps per execution, micro-batches, guards, request files, dry run."""

import copy
import json
import logging
import shutil

import numpy as np
import pytest
import tensorflow as tf
import yaml
from safetensors.numpy import load_file, save_file

import tfft
from tests.conftest import one_epoch, whole_config
from tests.processes import Command
from tfft.data import batches
from tfft.model import Model
from tfft.training import dry_run, memory
from tfft.training.callbacks import Interrupt, Save
from tfft.utils.errors import Interrupted, UserError

MIRRORED = {"strategy": "mirrored", "devices": ["CPU:0", "CPU:1"]}


@pytest.fixture(scope="module")
def base_config(tiny, tmp_path_factory):
    """A config without dropout and with a partial last batch: 96 training rows, 20 a batch."""
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
    """A copy of `base_config` without a test split."""
    plain_config["data"]["test"] = None
    return plain_config


def train_shared(config, tmp_path_factory, **changes):
    """Train a run for all tests of the module, which only read it."""
    return tfft.train(config, workdir=tmp_path_factory.mktemp("shared") / "run", **changes)


@pytest.fixture(scope="module")
def plain(base_config, tmp_path_factory):
    return train_shared(base_config, tmp_path_factory)


DROPOUT_ONE_SHAPE = {  # one shape, because XLA compiles each shape of a batch
    "data": {"validation": None, "test": None},
    "model": {"dropout": 0.1},
    "train": {"buckets": 1},
}


@pytest.fixture(scope="module")
def with_dropout(base_config, tmp_path_factory):
    return train_shared(base_config, tmp_path_factory, **DROPOUT_ONE_SHAPE)


@pytest.fixture(scope="module")
def observed(base_config, tmp_path_factory):
    """A run with a profile and with checkpoints at wall-clock intervals."""
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    changes = {"profile": [2, 3], "checkpoint": {"every": "0.00001 minutes", "keep": 99}}
    changes |= {"cache_features": False}  # above cached features, one call runs several steps
    return train_shared(base_config, tmp_path_factory, train=changes, method={"name": "head"})


def run(config, workdir, **changes):
    return tfft.train(config, workdir=workdir, **changes)


def weights(result):
    return {v.path: np.array(v.numpy()) for v in result.model.weights}


def largest_difference(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    return max(np.abs(a[path] - b[path]).max() for path in a)


def logged_entries(result):
    entries = (json.loads(line) for line in (result.workdir / "metrics.jsonl").open())
    return [{k: v for k, v in entry.items() if k != "time"} for entry in entries]


def test_two_replicas_train_the_same_model_as_one(plain, plain_config, tmp_path):
    plain_config["export"] = {"enabled": True}
    mirrored = run(plain_config, tmp_path / "mirrored", distribute=MIRRORED)
    assert largest_difference(plain, mirrored) < 1e-5
    actual, expected = mirrored.metrics, plain.metrics
    assert actual["test/accuracy"] == expected["test/accuracy"]
    assert actual["test/log_loss"] == pytest.approx(expected["test/log_loss"], abs=1e-5)
    for a, b in zip(logged_entries(plain), logged_entries(mirrored), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    facts = json.loads((tmp_path / "mirrored" / "run.json").read_text())
    assert facts["device"]["replicas"] == 2
    assert (tmp_path / "mirrored" / "export" / "1" / "saved_model.pb").is_file()
    rows = ["a red sky", "the blue apple", "green"]
    logits = plain.logits(rows)
    np.testing.assert_allclose(mirrored.logits(rows), logits, atol=1e-5)
    np.testing.assert_allclose(tfft.load(mirrored.workdir).logits(rows), logits, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [pytest.param({}, id="one"), pytest.param(MIRRORED, id="mirrored", marks=pytest.mark.slow)],
)
def test_resume_is_bit_identical_with_averages_and_dropout(config, tmp_path, monkeypatch, changes):
    config["model"]["dropout"] = 0.1
    config["optimizer"]["ema"] = 0.8
    config["distribute"] = changes
    undisturbed = run(config, tmp_path / "undisturbed")
    original = Interrupt.on_train_batch_end

    def stop_at_7(self, batch, logs=None):
        self.stop_requested |= self._state.step == 7
        original(self, batch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(Interrupt, "on_train_batch_end", stop_at_7)
        with pytest.raises(Interrupted, match="interrupted at step 7 of 10"):
            run(config, tmp_path / "resumed")
    resumed = run(config, tmp_path / "resumed")
    bound = 1e-5 if changes else 0
    assert largest_difference(undisturbed, resumed) <= bound
    for a, b in zip(logged_entries(undisturbed), logged_entries(resumed), strict=True):
        assert a == pytest.approx(b, abs=1e-12 + bound)


def test_averaged_weights_are_saved(plain, plain_config, tmp_path):
    averaged = run(plain_config, tmp_path / "averaged", optimizer={"ema": 0.9})
    assert largest_difference(plain, averaged) > 1e-4
    assert largest_difference(tfft.load(tmp_path / "averaged"), averaged) == 0


def test_steps_per_execution_changes_no_step(plain, plain_config, tmp_path):
    several = run(plain_config, tmp_path / "several", train={"steps_per_execution": 7})
    assert largest_difference(plain, several) == 0
    checkpoints = [
        sorted(p.name for p in (r.workdir / "checkpoints").iterdir()) for r in (plain, several)
    ]
    assert checkpoints[0] == checkpoints[1] and len(checkpoints[0]) == 4  # 3, 6, 9, 10

    def validations(result):
        return [entry for entry in logged_entries(result) if "validation/accuracy" in entry]

    assert validations(plain) == validations(several) and len(validations(plain)) == 3  # 4, 8, 10


def test_micro_batches_train_the_same_model(plain, plain_config, tmp_path):
    micro = run(plain_config, tmp_path / "micro", train={"micro_batch": 7})
    assert micro.model.options.micro_batch == 7
    assert largest_difference(plain, micro) < 1e-5


def test_auto_finds_the_micro_batch_that_fits(config, tmp_path, monkeypatch, capfd):
    """Only the measured peaks are fake; the search and the training with its result are real."""
    peaks = []

    def peak_of(function):
        function()
        peaks.append(1)
        return 1000 + 100 * (1 if len(peaks) == 1 else 2)

    monkeypatch.setattr(memory, "resident", lambda name="VmRSS": 1000)
    monkeypatch.setattr(memory, "peak_of", peak_of)
    monkeypatch.setattr(memory, "available", lambda: 300)
    result = run(config, tmp_path / "run", train={"batch_size": "auto"}, data={"validation": None})
    assert result.config.train.batch_size == 32  # the default: `auto` sets the micro-batch alone
    assert result.model.options.micro_batch == 4  # 100 + 50 * (4 - 2) <= 240 < 100 + 50 * (8 - 2)
    assert "micro-batch: 4 of 32 rows" in capfd.readouterr().err


def test_by_measuring_extrapolates_the_peak_from_two_small_sizes(monkeypatch):
    monkeypatch.setattr(memory, "resident", lambda name="VmRSS": 0)
    monkeypatch.setattr(memory, "available", lambda: 1000)
    sizes = []

    def run(size):
        sizes.append(size)
        return True

    monkeypatch.setattr(memory, "peak_of", lambda function: function() and 100 + 50 * sizes[-1])
    assert memory.by_measuring(run, 64) == 8  # 100 + 50 * 8 <= 800 < 100 + 50 * 16
    assert sizes == [4, 8]
    monkeypatch.setattr(memory, "available", lambda: 100)
    with pytest.raises(UserError, match="not even one row fits"):
        memory.by_measuring(run, 64)


def test_peak_of_measures_an_allocation():
    def allocate():
        return np.ones(30_000_000).sum()  # 240 MB

    idle_peak, peak = memory.peak_of(lambda: None), memory.peak_of(allocate)
    assert peak - idle_peak > 200e6
    assert memory.available() > 100e6


def test_by_trying_halves_until_it_fits():
    assert memory.by_trying(lambda size: size <= 5, 32) == 4
    with pytest.raises(UserError, match="not even one row fits"):
        memory.by_trying(lambda size: False, 32)


@pytest.mark.slow
def test_out_of_memory_error_names_the_largest_size_that_fits(config, tmp_path, monkeypatch):
    original = Model.gradients

    def allocating(self, options, x, y, weight, totals):
        """Allocate more than the memory for more than 5 rows."""
        rows = tf.shape(y)[0]
        size = tf.where(rows > 5, 1 << 46, 1)
        allocated = tf.reduce_sum(tf.random.stateless_uniform([size], [1, 2]))
        loss, gradients = original(self, options, x, y, weight, totals)
        return loss + tf.minimum(allocated, 0.0), gradients

    monkeypatch.setattr(Model, "gradients", allocating)
    with pytest.raises(UserError) as error:
        run(config, tmp_path / "run")
    text = str(error.value)
    assert "out of memory with 20 rows of 1" in text
    assert "the largest size that worked is 5: set train.micro_batch: 5, or auto" in text
    result = run(config, tmp_path / "micro", train={"micro_batch": 5})
    assert result.metrics["steps"] == 10


def test_out_of_memory_outside_of_a_step_is_a_user_error():
    line = r"^out of memory: a tensor of 1048576 x 67108864 on .*CPU"
    with pytest.raises(UserError, match=line), memory.out_of_memory_errors():
        tf.ones([1 << 20, 1 << 26])
    with pytest.raises(ZeroDivisionError), memory.out_of_memory_errors():
        1 / 0  # noqa: B018


def test_a_failed_dry_run_does_not_break_the_next(config, tmp_path, monkeypatch):
    original, failures = dry_run._dry_step, []

    def failing(model, pipeline):
        """Fail as TensorFlow does while temporary variables of a failed graph still exist."""
        if not failures:
            failures.append(model.options.failed_attempts)
            raise tf.errors.ResourceExhaustedError(None, None, "OOM")
        if model.options.failed_attempts == 0:
            failures.append(model.options.failed_attempts)
            raise tf.errors.AlreadyExistsError(None, None, "tmp_var")
        original(model, pipeline)

    monkeypatch.setattr(dry_run, "_dry_step", failing)
    with pytest.raises(UserError, match="the largest size that worked is 10"):
        run(config, tmp_path / "run")
    assert len(failures) == 2


def test_the_dry_run_changes_nothing(with_dropout, config, tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "_dry_step", lambda model, pipeline: None)
    without = run(config, tmp_path / "without", **DROPOUT_ONE_SHAPE)
    assert largest_difference(with_dropout, without) == 0


@pytest.fixture
def third_batch_nan(monkeypatch):
    """Give the third batch of an iteration weights of NaN."""
    original = batches.dataset

    def dataset(*arguments):
        def poison(index, element):
            inputs, labels, weight = element
            return inputs, labels, tf.where(index == 2, float("nan"), weight)

        return original(*arguments).enumerate().map(poison)

    monkeypatch.setattr(batches, "dataset", dataset)


def test_a_non_finite_loss_stops_and_names_the_rows(config, tmp_path, third_batch_nan):
    changes = {"checkpoint": {"every": "2 steps"}}
    with pytest.raises(UserError) as error:
        run(config, tmp_path / "run", train=changes)
    assert "the loss is nan at step 3; lower optimizer.learning_rate" in str(error.value)
    assert "The last checkpoint is kept (the batch: rows " in str(error.value)
    checkpoints = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert checkpoints == ["step_00000002"]


def test_a_batch_with_a_non_finite_loss_can_be_skipped(config, tmp_path, third_batch_nan, capfd):
    result = run(config, tmp_path / "run", train={"skip_non_finite": 1})
    assert "the loss is nan at step 3: skipped, 1 of at most 1 (the batch" in capfd.readouterr().err
    assert result.metrics["steps"] == 10
    assert all(np.isfinite(value).all() for value in weights(result).values())
    assert all(np.isfinite(list(entry.values())).all() for entry in logged_entries(result))


def create_file_after_step(monkeypatch, name, step, workdir):
    """Create a file in the run directory after a step."""
    original = Save.on_train_batch_end

    def on_train_batch_end(self, batch, logs=None):
        if self._state.step == step:
            (workdir / name).touch()
        original(self, batch, logs)

    monkeypatch.setattr(Interrupt, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(Save, "on_train_batch_end", on_train_batch_end)


def test_a_stop_file_stops_the_run(plain, plain_config, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        create_file_after_step(patch, "STOP", 2, workdir)  # no step at which a checkpoint is due
        with pytest.raises(Interrupted, match="interrupted at step 2 of 10, which is saved"):
            run(plain_config, workdir)
    assert not (workdir / "STOP").exists()
    assert largest_difference(plain, run(plain_config, workdir)) == 0


def test_a_save_file_saves_and_the_run_continues(config, tmp_path, monkeypatch, capfd):
    workdir = tmp_path / "run"
    create_file_after_step(monkeypatch, "SAVE", 3, workdir)
    changes = {"checkpoint": {"every": "1 epochs", "keep": 9}, "cache_features": False}
    run(config, workdir, train=changes, method={"name": "head"})
    assert "saved at step 3 on request" in capfd.readouterr().err
    names = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    assert names == [f"step_{step:08d}" for step in (3, 5, 10)]


def test_checkpoints_at_wall_clock_intervals(observed):
    assert len(list((observed.workdir / "checkpoints").iterdir())) == 10


def test_a_profile_is_written(observed):
    assert list((observed.workdir / "profile").rglob("*.xplane.pb"))


def test_remat_and_xla_from_the_config(with_dropout, config, tmp_path, capfd):
    for section, changes in DROPOUT_ONE_SHAPE.items():
        config[section] |= changes
    remat = run(config, tmp_path / "remat", train={"remat": ["embeddings", "block_0"]})
    assert "remat: embeddings, block_0" in capfd.readouterr().err
    assert largest_difference(with_dropout, remat) < 1e-5
    xla = run(config, tmp_path / "xla", train={"jit_compile": True})
    assert xla.model.options.jit_compile
    assert largest_difference(with_dropout, xla) < 1e-4
    with pytest.raises(UserError, match=r"train\.remat: no stage 'block_7'; did you mean 'block_"):
        run(config, tmp_path / "typo", train={"remat": ["block_7"]})


def test_without_determinism_it_trains_the_same_model(plain, plain_config, tmp_path):
    """Use a new process, because determinism cannot be switched off in this one."""
    path, workdir = tmp_path / "config.yaml", tmp_path / "nondeterministic"
    path.write_text(yaml.safe_dump(plain_config))
    flags = [f"--config={path}", f"--workdir={workdir}", "--set=train.deterministic=false"]
    code, log = Command("train", *flags).wait()
    assert code == 0, log
    assert largest_difference(plain, tfft.load(workdir)) < 1e-5


def test_a_static_shape_keeps_the_mean(plain):
    """A TPU gets one shape, with filler rows of weight 0."""
    train = plain.datasets.train
    plan = batches.plan(train.lengths, 20, batches.choose_bucket_lengths(train.lengths, 1), 0, 0)
    shape = (10, 16)
    for replica in range(2):
        sharding = batches.Sharding((replica,), 2)
        weights = np.ones(len(train), np.float32)
        rows = batches.Tokens(train, 0)
        dataset = batches.dataset(
            rows, batches.RowTargets(train.targets, weights), plan, sharding, shape
        )
        assert dataset.element_spec[0]["token_ids"].shape == shape
        elements = list(dataset)
        assert len(elements) == len(plan)
        for batch, (inputs, labels, weight) in zip(plan, elements, strict=True):
            positions = next(sharding.shards(batch)).positions
            assert inputs["token_ids"].shape == shape
            assert (inputs["padding_mask"].numpy().sum(axis=1) > 0).all()
            # The mean over all 20 slots equals the mean over the actual rows.
            share = len(positions) / len(batch.positions)
            assert weight.numpy().sum() / 20 == pytest.approx(share)
            assert (weight.numpy()[len(positions) :] == 0).all()
            np.testing.assert_array_equal(labels[: len(positions)], train.targets[positions])


def test_killed_after_the_last_step_it_writes_the_last_weights(tiny, tmp_path):
    """Without validation, best/ holds the untrained weights until the end."""
    config = one_epoch(tiny, tmp_path, method={"name": "head"}, export={"enabled": False})
    undisturbed = run(config, tmp_path / "undisturbed")
    shutil.copytree(tmp_path / "undisturbed", tmp_path / "killed")
    (tmp_path / "killed" / "metrics.json").unlink()
    path = tmp_path / "killed" / "best" / "weights.safetensors"
    expected = load_file(path)
    save_file({name: np.zeros_like(value) for name, value in expected.items()}, path)
    resumed = run(config, tmp_path / "killed")
    assert largest_difference(undisturbed, resumed) == 0
    np.testing.assert_equal(load_file(path), expected)
