"""The cached prefix: the same training, started above what is frozen."""

import copy
import errno
import json
import os
import shutil
import threading
import typing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

import tfft
from tests.conftest import write_csv
from tfft import backbones
from tfft.config import ModelConfig, TaskConfig
from tfft.data import batches
from tfft.model import assemble, masks, stages
from tfft.spec import Rule
from tfft.tasks import TASKS
from tfft.training import feature_cache
from tfft.utils.errors import UserError

MIRRORED = {"strategy": "mirrored", "devices": ["CPU:0", "CPU:1"]}


def built(tiny, *moving, pooling="mean"):
    backbone = backbones.load(ModelConfig(backbone=f"hf:{tiny}"))
    task = TaskConfig(pooling=pooling)
    model = assemble(backbone, TASKS["text_classification"], task, list("abc"))
    rules = [Rule(name, True) for name in moving]
    masks.apply(model, stages(backbone, model), [*rules, Rule("*", False)])
    return model


def inputs(rows=3, tokens=9):
    ids = np.random.default_rng(0).integers(5, 60, (rows, tokens)).astype(np.int32)
    mask = (np.arange(tokens) < np.array([9, 4, 6])[:, None]).astype(np.int32)
    return {"token_ids": ids, "padding_mask": mask, "segment_ids": ids * 0}


@pytest.mark.parametrize(
    ("moving", "pooling", "shape", "needs"),
    [
        (["head"], "mean", (16,), set()),  # one vector a row is stored: the pooling is below
        (["head"], "pooled", (16,), set()),
        (["pooler", "head"], "pooled", (16,), {"padding_mask"}),  # of the first token
        (["block_1", "head"], "mean", (None, 16), {"padding_mask"}),
    ],
)
def test_the_two_parts_are_the_model(tiny_two_blocks, moving, pooling, shape, needs):
    model = built(tiny_two_blocks, *moving, pooling=pooling)
    expected = np.asarray(model(inputs(), training=False))
    made = feature_cache.split_model(model)
    assert list(made.shapes.values()) == [shape]
    assert set(made.above.input) == {"below_0"} | needs
    stored = made.below(inputs(), training=True)  # frozen: no dropout, though it trains
    model.start_above(made.above)
    given = {"padding_mask": inputs()["padding_mask"]}
    given |= {name: np.asarray(value) for name, value in stored.items()}
    np.testing.assert_allclose(model(given, training=False), expected, atol=1e-6)
    np.testing.assert_allclose(model(inputs(), training=False), expected, atol=1e-6)


def test_no_cut_where_the_lowest_stage_moves(tiny):
    assert "lowest stage is trainable" in feature_cache.split_model(
        built(tiny, "embeddings", "head")
    )


def trained(config, workdir, **train):
    return tfft.train(config, workdir=workdir, train=train)


def assert_same(one, two, bound):
    for a, b in zip(one.model.weights, two.model.weights, strict=True):
        np.testing.assert_allclose(a.value, np.asarray(b.value), atol=bound, err_msg=a.path)


@pytest.mark.parametrize("method", [{"name": "head"}, {"name": "top", "stages": 1}])
def test_it_is_the_same_training(config, tiny_two_blocks, tmp_path, capfd, method):
    config["method"] = method
    config["data"]["test"] = None
    if method["name"] == "top":  # with a block below: sequences of two widths are stored
        config["model"]["backbone"] = f"hf:{tiny_two_blocks}"
    plain = trained(config, tmp_path / "plain", cache=False)
    exact = trained(config, tmp_path / "exact", cache_dtype="float32")
    out = capfd.readouterr().err
    assert "cache: on: what is below" in out and "float32" in out
    assert_same(plain, exact, 1e-6)
    halves = trained(config, tmp_path / "halves")
    assert "stored as float16" in capfd.readouterr().err
    assert_same(plain, halves, 2e-3)
    assert trained(config, tmp_path / "b", cache_dtype="bfloat16").metrics["steps"] == 12


@pytest.fixture(scope="module")
def first(tiny, tmp_path_factory):
    """A run with a cached prefix, its config, and its cache."""
    folder = tmp_path_factory.mktemp("first")
    config = {
        "data": {
            "train": str(write_csv(folder / "train.csv", 120)),
            "validation": {"fraction": 0.2},
            "max_length": 16,
        },
        "model": {"backbone": f"hf:{tiny}"},
        "method": {"name": "head"},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"epochs": 2, "batch_size": 16},
        "evaluate": {"bootstrap": 0, "baselines": False},
        "export": {"enabled": False},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFFT_CACHE", str(folder / "cache"))
        run = trained(config, folder / "run")
    return SimpleNamespace(run=run, config=config, cache=folder / "cache")


@pytest.fixture
def own_cache(first, tmp_path, monkeypatch):
    """A copy of that cache, in use."""
    folder = shutil.copytree(first.cache, tmp_path / "cache")
    monkeypatch.setenv("TFFT_CACHE", str(folder))
    return folder


def test_it_is_read_again_by_the_next_run(first, own_cache, tmp_path, monkeypatch):
    config = copy.deepcopy(first.config)
    monkeypatch.setattr(feature_cache, "_compute", None)  # would fail if it were computed
    assert_same(first.run, trained(config, tmp_path / "second"), 0)
    config["model"]["surgery"] = {"reinitialize": 1}  # other weights: another prefix
    with pytest.raises(TypeError):
        trained(config, tmp_path / "third")


def test_a_constant_of_the_backbone_is_part_of_the_key(first, own_cache, tmp_path, monkeypatch):
    """The same weights and layers with another epsilon give other values."""
    config = copy.deepcopy(first.config)
    folder = shutil.copytree(config["model"]["backbone"].removeprefix("hf:"), tmp_path / "other")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "layer_norm_eps": 0.1}))
    config["model"]["backbone"] = f"hf:{folder}"
    monkeypatch.setattr(feature_cache, "_compute", None)
    with pytest.raises(TypeError):
        trained(config, tmp_path / "run")


class Rows:
    """Rows of one number each, and what a cut stores of them."""

    shapes: typing.ClassVar = {"below_0": (4,)}
    digest = b""
    below = SimpleNamespace(layers=[])
    above = SimpleNamespace(input={})
    prepared = SimpleNamespace(folder=Path("set"))

    def __init__(self, wait=lambda: None):
        self.rows, self.lengths = np.arange(300), np.full(300, 8, np.int32)
        self.wait = wait

    def __len__(self):
        return 300

    def arrays(self, batch):
        self.wait()
        return batch.positions

    def compute(self, positions):
        return {"below_0": tf.constant(np.repeat(positions[:, None] + 1.0, 4, axis=1))}


def stored(folder, wait=lambda: None):
    own = Rows(wait)
    found = feature_cache.store(own, own, own, "float32", folder, "key")
    return found.arrays(batches.Batch(np.arange(300), 8))["below_0"][:, 0]


def test_two_runs_may_fill_the_same_folder(tmp_path):
    second_began, first_ended = threading.Event(), threading.Event()

    def of_the_first():
        assert second_began.wait(20)

    def of_the_second():
        second_began.set()
        assert first_ended.wait(20)

    with ThreadPoolExecutor(2) as pool:
        second = pool.submit(stored, tmp_path, of_the_second)
        first = pool.submit(stored, tmp_path, of_the_first)
        values = first.result(30)
        first_ended.set()
        np.testing.assert_array_equal(values, np.arange(300) + 1)
        np.testing.assert_array_equal(second.result(30), np.arange(300) + 1)
    assert len(list((tmp_path / "prefix").iterdir())) == 1
    np.testing.assert_array_equal(stored(tmp_path, None), values)  # whole: not computed again


def test_a_full_disk_is_an_error_and_no_signal(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        stored(tmp_path)
    assert not list((tmp_path / "prefix").iterdir())


def test_what_was_not_finished_is_computed_anew(first, own_cache, tmp_path, monkeypatch):
    marks = list((own_cache / "prefix").glob("*/meta.json"))
    assert len(marks) == 2  # the training rows, the validation rows
    for mark in marks:
        mark.unlink()
    computed, compute = [], feature_cache._compute

    def counting(*arguments, **more):
        computed.append(1)
        return compute(*arguments, **more)

    monkeypatch.setattr(feature_cache, "_compute", counting)
    assert_same(first.run, trained(first.config, tmp_path / "second"), 0)
    assert len(computed) == 2


def test_two_replicas_read_it(config, tiny_two_blocks, tmp_path):
    config["method"] = {"name": "top", "stages": 1}
    config["model"]["backbone"] = f"hf:{tiny_two_blocks}"
    config["data"]["validation"] = config["data"]["test"] = None
    config["model"]["dropout"], config["task"] = 0.0, {"dropout": 0.0}
    one = trained(config, tmp_path / "one")
    two = tfft.train(config, workdir=tmp_path / "two", distribute=MIRRORED)
    for a, b in zip(one.model.weights, two.model.weights, strict=True):
        np.testing.assert_allclose(a.value, b.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": {"name": "lora"}}, "computes 0% of the model only"),
        ({"method": {"name": "head"}, "train": {"epochs": 1}}, "read for 1.0 epochs only"),
        (
            {
                "method": {"name": "head"},
                "regularization": {"adversarial": {"name": "fgm"}},
            },
            "adversarial training changes the embeddings",
        ),
    ],
)
def test_auto_says_why_not(config, tmp_path, capfd, changes, reason):
    config["data"]["validation"] = config["data"]["test"] = None
    tfft.train(config, workdir=tmp_path / "run", **changes)
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("cache: off")]
    assert reason in told[0]


def test_it_cannot_be_forced(config, tmp_path):
    with pytest.raises(UserError, match="cache: the lowest stage is trainable"):
        trained(config, tmp_path / "run", cache=True)


def test_fixed_shapes_of_stored_maps():
    """A stored map [N, positions, D] of pictures, whose batches have no width of their own."""
    values = np.arange(3 * 5 * 2, dtype=np.float32).reshape(3, 5, 2)
    split = SimpleNamespace(lengths=np.ones(3, np.int32))
    rows = feature_cache.CachedFeatures(split, {"below_0": values}, set(), masked=False)
    batch = batches.Batch(np.arange(3), 1)
    targets, weights = np.arange(3), np.ones(3, np.float32)
    ((inputs, y, weight),) = batches.dataset(rows, targets, weights, [batch], shape=(4, 1))
    np.testing.assert_array_equal(inputs["below_0"], np.pad(values, [(0, 1), (0, 0), (0, 0)]))
    np.testing.assert_array_equal(y, [0, 1, 2, 0])
    np.testing.assert_allclose(weight, [4 / 3, 4 / 3, 4 / 3, 0])
