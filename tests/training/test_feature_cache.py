"""The feature cache: training above it equals training the whole model."""

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
from tfft.config import ModelConfig
from tfft.config.tasks import TextClassification
from tfft.data import batches
from tfft.model import assemble, masks, stages
from tfft.spec import Rule
from tfft.tasks import TASKS
from tfft.training import feature_cache
from tfft.utils.errors import UserError

MIRRORED = {"strategy": "mirrored", "devices": ["CPU:0", "CPU:1"]}


def build_model(tiny, *trainable, pooling="mean"):
    backbone = backbones.load(ModelConfig(backbone=f"hf:{tiny}"))
    task = TextClassification(pooling=pooling)
    model = assemble(backbone, TASKS["text_classification"], task, list("abc"))
    rules = [Rule(name, True) for name in trainable]
    masks.apply(model, stages(backbone, model), [*rules, Rule("*", False)])
    return model


def inputs(rows=3, tokens=9):
    ids = np.random.default_rng(0).integers(5, 60, (rows, tokens)).astype(np.int32)
    mask = (np.arange(tokens) < np.array([9, 4, 6])[:, None]).astype(np.int32)
    return {"token_ids": ids, "padding_mask": mask, "segment_ids": ids * 0}


@pytest.mark.parametrize(
    ("trainable", "pooling", "shape", "inputs_above"),
    [
        (["head"], "mean", (16,), set()),  # pooling is below: one vector a row is stored
        (["head"], "pooled", (16,), set()),
        (["pooler", "head"], "pooled", (16,), {"padding_mask"}),  # of the first token
        (["block_1", "head"], "mean", (None, 16), {"padding_mask"}),
    ],
)
def test_the_two_parts_compute_the_model(tiny_two_blocks, trainable, pooling, shape, inputs_above):
    model = build_model(tiny_two_blocks, *trainable, pooling=pooling)
    expected = np.asarray(model(inputs(), training=False))
    split = feature_cache.split_model(model)
    assert list(split.shapes.values()) == [shape]
    assert set(split.upper_part.input) == {"below_0"} | inputs_above
    stored = split.lower_part(inputs(), training=True)  # frozen layers have no dropout in training
    model.configure(upper_part=split.upper_part)
    features = {"padding_mask": inputs()["padding_mask"]}
    features |= {name: np.asarray(value) for name, value in stored.items()}
    np.testing.assert_allclose(model(features, training=False), expected, atol=1e-6)
    np.testing.assert_allclose(model(inputs(), training=False), expected, atol=1e-6)


def test_no_split_below_a_trainable_lowest_stage(tiny):
    assert "lowest stage is trainable" in feature_cache.split_model(
        build_model(tiny, "embeddings", "head")
    )


def train_run(config, workdir, **train):
    return tfft.train(config, workdir=workdir, train=train)


def assert_equal_weights(first, second, bound):
    for a, b in zip(first.model.weights, second.model.weights, strict=True):
        np.testing.assert_allclose(a.value, np.asarray(b.value), atol=bound, err_msg=a.path)


@pytest.mark.parametrize(
    "method",
    [{"name": "head"}, pytest.param({"name": "top", "stages": 1}, marks=pytest.mark.slow)],
)
def test_training_from_cached_features_gives_the_same_weights(
    config, tiny_two_blocks, tmp_path, capfd, method
):
    config["method"] = method
    config["data"]["test"] = None
    # The gradient of a key's bias is zero but for rounding (softmax ignores what all keys share).
    # Adam divides it by itself, which makes steps of noise, unless epsilon is above the noise.
    config["optimizer"]["epsilon"] = 1e-5
    if method["name"] == "top":  # with a block below: sequences of two widths are stored
        config["model"]["backbone"] = f"hf:{tiny_two_blocks}"
    uncached = train_run(config, tmp_path / "uncached", cache_features=False)
    float32 = train_run(config, tmp_path / "float32", cache_dtype="float32")
    log = capfd.readouterr().err
    assert "cache: on: what is below" in log and "float32" in log
    assert_equal_weights(uncached, float32, 1e-6)
    float16 = train_run(config, tmp_path / "float16")
    assert "stored as float16" in capfd.readouterr().err
    assert_equal_weights(uncached, float16, 2e-3)
    assert train_run(config, tmp_path / "b", cache_dtype="bfloat16").metrics["steps"] == 12


@pytest.fixture(scope="module")
def cached_run(tiny, tmp_path_factory):
    """A run with cached features, its config, and its cache."""
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
        run = train_run(config, folder / "run")
    return SimpleNamespace(run=run, config=config, cache=folder / "cache")


@pytest.fixture
def cache_copy(cached_run, tmp_path, monkeypatch):
    """A copy of the cache of `cached_run`, set as the cache."""
    folder = shutil.copytree(cached_run.cache, tmp_path / "cache")
    monkeypatch.setenv("TFFT_CACHE", str(folder))
    return folder


def test_the_next_run_reads_the_cache(cached_run, cache_copy, tmp_path, monkeypatch):
    config = copy.deepcopy(cached_run.config)
    monkeypatch.setattr(feature_cache, "_compute", None)  # a call raises TypeError
    assert_equal_weights(cached_run.run, train_run(config, tmp_path / "second"), 0)
    config["model"]["surgery"] = {"reinitialize": 1}  # other weights have other features
    with pytest.raises(TypeError):
        train_run(config, tmp_path / "third")


def test_a_constant_of_the_backbone_is_part_of_the_key(
    cached_run, cache_copy, tmp_path, monkeypatch
):
    """The same weights and layers with another epsilon give other features."""
    config = copy.deepcopy(cached_run.config)
    folder = shutil.copytree(config["model"]["backbone"].removeprefix("hf:"), tmp_path / "other")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "layer_norm_eps": 0.1}))
    config["model"]["backbone"] = f"hf:{folder}"
    monkeypatch.setattr(feature_cache, "_compute", None)
    with pytest.raises(TypeError):
        train_run(config, tmp_path / "run")


class FakeSplit:
    """A data set, its rows and a model split in one: each row is a number."""

    shapes: typing.ClassVar = {"below_0": (4,)}
    digest = b""
    lower_part = SimpleNamespace(layers=[])
    upper_part = SimpleNamespace(input={})
    prepared = SimpleNamespace(folder=Path("set"))

    def __init__(self, wait=lambda: None):
        self.rows = self.examples = np.arange(300)
        self.lengths = np.full(300, 8, np.int32)
        self.wait = wait

    def __len__(self):
        return 300

    def arrays(self, batch):
        self.wait()
        return batch.positions

    def compute(self, positions):
        return {"below_0": tf.constant(np.repeat(positions[:, None] + 1.0, 4, axis=1))}


def stored_values(folder, wait=lambda: None):
    fake = FakeSplit(wait)
    features = feature_cache.store(fake, fake, fake, "float32", folder, "key")
    return features.arrays(batches.Batch(np.arange(300), 8))["below_0"][:, 0]


def test_two_processes_may_fill_the_same_folder(tmp_path):
    second_started, first_finished = threading.Event(), threading.Event()

    def wait_for_second():
        assert second_started.wait(20)

    def wait_for_first():
        second_started.set()
        assert first_finished.wait(20)

    with ThreadPoolExecutor(2) as pool:
        second = pool.submit(stored_values, tmp_path, wait_for_first)
        first = pool.submit(stored_values, tmp_path, wait_for_second)
        values = first.result(30)
        first_finished.set()
        np.testing.assert_array_equal(values, np.arange(300) + 1)
        np.testing.assert_array_equal(second.result(30), np.arange(300) + 1)
    assert len(list((tmp_path / "prefix").iterdir())) == 1
    # The folder is complete, so nothing is computed: a call of None would raise.
    np.testing.assert_array_equal(stored_values(tmp_path, None), values)


def test_a_full_disk_raises_an_error_before_any_write(tmp_path, monkeypatch):
    def raise_no_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", raise_no_space)
    with pytest.raises(OSError, match="No space left"):
        stored_values(tmp_path)
    assert not list((tmp_path / "prefix").iterdir())


def test_an_incomplete_cache_is_computed_again(cached_run, cache_copy, tmp_path, monkeypatch):
    metadata_files = list((cache_copy / "prefix").glob("*/meta.json"))
    assert len(metadata_files) == 2  # the training rows, the validation rows
    for path in metadata_files:
        path.unlink()
    calls, compute = [], feature_cache._compute

    def counting(*args, **kwargs):
        calls.append(1)
        return compute(*args, **kwargs)

    monkeypatch.setattr(feature_cache, "_compute", counting)
    assert_equal_weights(cached_run.run, train_run(cached_run.config, tmp_path / "second"), 0)
    assert len(calls) == 2


def test_two_replicas_train_from_cached_features(config, tiny_two_blocks, tmp_path):
    config["method"] = {"name": "top", "stages": 1}
    config["model"]["backbone"] = f"hf:{tiny_two_blocks}"
    config["data"]["validation"] = config["data"]["test"] = None
    config["model"]["dropout"], config["task"] = 0.0, {"dropout": 0.0}
    single = train_run(config, tmp_path / "single")
    mirrored = tfft.train(config, workdir=tmp_path / "mirrored", distribute=MIRRORED)
    for a, b in zip(single.model.weights, mirrored.model.weights, strict=True):
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
def test_auto_logs_why_features_are_not_cached(config, tmp_path, capfd, changes, reason):
    config["data"]["validation"] = config["data"]["test"] = None
    tfft.train(config, workdir=tmp_path / "run", **changes)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("cache: off")]
    assert reason in lines[0]


def test_a_requested_cache_that_is_not_possible_is_an_error(config, tmp_path):
    with pytest.raises(UserError, match="cache_features: the lowest stage is trainable"):
        train_run(config, tmp_path / "run", cache_features=True)


def test_fixed_shapes_of_stored_feature_maps():
    """A stored map [N, positions, D] of images has a fixed shape; the batch width is unused."""
    values = np.arange(3 * 5 * 2, dtype=np.float32).reshape(3, 5, 2)
    split = SimpleNamespace(lengths=np.ones(3, np.int32))
    rows = feature_cache.CachedFeatures(split, {"below_0": values}, set(), masked=False)
    batch = batches.Batch(np.arange(3), 1)
    targets, weights = np.arange(3), np.ones(3, np.float32)
    ((inputs, y, weight),) = batches.dataset(
        rows, batches.RowTargets(targets, weights), [batch], shape=(4, 1)
    )
    np.testing.assert_array_equal(inputs["below_0"], np.pad(values, [(0, 1), (0, 0), (0, 0)]))
    np.testing.assert_array_equal(y, [0, 1, 2, 0])
    np.testing.assert_allclose(weight, [4 / 3, 4 / 3, 4 / 3, 0])
