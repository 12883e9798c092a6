"""What every method of the table promises: the same tests for each, new ones included."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from pydantic import TypeAdapter
from safetensors.numpy import load_file

import tfft
from tests.conftest import copy_killed
from tfft import backbones
from tfft.config import MethodConfig, ModelConfig, OptimizerConfig, TaskConfig
from tfft.methods import METHODS
from tfft.model import assemble, masks, stages
from tfft.tasks import TASKS
from tfft.training import phases

# What a method cannot do without.
REQUIRED = {
    "top": {"stages": 1},
    "prompt": {"length": 4},
    "qlora": {"targets": "query|value", "group": 4},
}
MASK = [{"match": "block_0"}, {"match": "head"}, {"match": "*", "trainable": False}]
MERGED = {"lora", "dora", "ia3"}
MIRRORED = {"strategy": "mirrored", "devices": ["CPU:0", "CPU:1"]}
ROWS = ["a red sky", "the blue apple like grass", "green"]
STEPS, KILLED = 54, 10  # the checkpoint is before most changes of phase, within an epoch


def section(name, **more):
    return {"name": name, **REQUIRED.get(name, {}), **more}


def changed(config, name, **more):
    """The config with a method."""
    config["method"] = section(name, **more)
    if name == "mask":
        config["mask"] = MASK
    return config


def built(tiny, name, **more):
    """(model, its stages, phases, output before `apply`, output after it, inputs)."""
    keras.utils.set_random_seed(0)
    backbone = backbones.load(ModelConfig(backbone=f"hf:{tiny}"))
    model = assemble(backbone, TASKS["text_classification"], TaskConfig(), list("abc"))
    every = stages(backbone, model)
    ids = np.random.default_rng(0).integers(5, 60, (3, 9)).astype(np.int32)
    inputs = {"token_ids": ids, "padding_mask": ids * 0 + 1, "segment_ids": ids * 0}
    before = np.asarray(model(inputs, training=False))
    config = TypeAdapter(MethodConfig).validate_python(section(name, **more))
    found = METHODS[name].apply(model, every, config)
    return model, every, found, before, np.asarray(model(inputs, training=False)), inputs


@pytest.mark.parametrize("name", METHODS)
def test_identity_at_first(tiny, name):
    *_, before, after, _ = built(tiny, name)
    if METHODS[name].identity:
        np.testing.assert_allclose(after, before, atol=1e-6)
    else:
        assert np.abs(after - before).max() > 0


@pytest.mark.parametrize("name", METHODS)
def test_what_is_frozen_has_no_gradient_and_no_slot(tiny, name):
    model, every, found, *_ = built(tiny, name)
    own = [phases.Rule(r["match"], r.get("trainable", True)) for r in MASK if name == "mask"]
    course = phases.resolve(model, every, found, own, OptimizerConfig(), 10, 100)
    masks.set_trainable(model, course.at(0).mask)
    moving = {e.path for e in course.at(0).mask.entries if e.trainable}
    assert {v.path for v in model.trainable_variables} == moving
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    assert len(optimizer.variables) == 2 + 2 * len(moving)


@pytest.mark.parametrize("name", sorted(MERGED))
def test_merged_exactly_and_put_back(tiny, name):
    more = {} if name == "ia3" else {"targets": "query|value|up|down", "rank": 3}
    model, *_, inputs = built(tiny, name, **more)
    generator = np.random.default_rng(1)
    for variable in model.weights:
        if f"/{name}/" in variable.path:
            noise = generator.normal(0, 0.2, variable.shape)
            variable.assign(np.asarray(variable.value) + noise.astype(np.float32))
    kept = {v.path: np.array(v.value) for v in model.weights}
    live = np.asarray(model(inputs, training=False))
    with model.merged() as layers:
        assert layers
        assert not [v.path for v in model.weights if f"/{name}/" in v.path]
        np.testing.assert_allclose(model(inputs, training=False), live, atol=1e-5)
    for variable in model.weights:
        np.testing.assert_array_equal(kept[variable.path], variable.value, err_msg=variable.path)
    np.testing.assert_array_equal(model(inputs, training=False), live)


def pretrained(tiny):
    backbone = backbones.load(ModelConfig(backbone=f"hf:{tiny}"))
    return {v.path: np.array(v.value) for v in backbone.model.weights}


# One of each kind: a mask with a cached prefix, phases, an addition that is merged, other keys,
# other kernels. Of the others, those of a kind repeat the contract; `full` is what
# tests/test_train.py runs.
KINDS = ("head", "gradual", "lora", "prefix", "qlora")


def methods(quick):
    """All methods, those that are not quick behind `slow`."""
    return [pytest.param(n, marks=() if n in quick else pytest.mark.slow) for n in METHODS]


@pytest.mark.parametrize("name", methods(quick=KINDS))
def test_frozen_saved_loaded_resumed(config, tiny, tmp_path, name):
    config = changed(config, name)
    config["train"] |= {"epochs": STEPS // 6, "checkpoint": {"every": "10 steps", "keep": 9}}
    whole = tfft.train(config, workdir=tmp_path / "whole")
    assert whole.metrics["steps"] == STEPS

    # Frozen means bit-equal.
    values = {v.path: np.array(v.value) for v in whole.model.weights}
    description = json.loads((whole.workdir / "best" / "model.json").read_text())
    trained = set(values) if description["trained"] is None else set(description["trained"])
    at_first = pretrained(tiny)
    for path in set(at_first) & set(values) - trained:
        np.testing.assert_array_equal(values[path], at_first[path], err_msg=path)
    moved = [p for p in trained & set(at_first) if not np.array_equal(values[p], at_first[p])]
    new = trained - set(at_first)
    assert moved or new

    # Only what was trained is saved, and all that is needed.
    assert set(load_file(whole.workdir / "best" / "weights.safetensors")) == trained
    again = tfft.load(whole.workdir)
    np.testing.assert_allclose(again.logits(ROWS), whole.logits(ROWS), atol=1e-6)

    # A resumed run goes on learning: it ends as if it had not been interrupted.
    parts = tfft.train(config, workdir=copy_killed(whole.workdir, tmp_path / "parts", KILLED))
    for variable in parts.model.weights:
        np.testing.assert_array_equal(variable.value, values[variable.path], variable.path)


@pytest.mark.parametrize("name", methods(quick=("lora", "qlora")))
def test_two_replicas(config, tmp_path, name):
    config = changed(config, name)
    config["model"]["dropout"] = 0.0
    config["task"] = {"dropout": 0.0}
    config["train"]["cache_features"] = False
    one = tfft.train(config, workdir=tmp_path / "one")
    two = tfft.train(config, workdir=tmp_path / "two", distribute=MIRRORED)
    for a, b in zip(one.model.weights, two.model.weights, strict=True):
        np.testing.assert_allclose(a.value, keras.ops.convert_to_numpy(b), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_exported_in_bfloat16(config, tmp_path, name):
    """Trained in mixed precision, exported, and the export verified in a fresh process."""
    config = changed(config, name)
    config["export"] = {"enabled": True}
    run = tfft.train(config, workdir=tmp_path / "run", distribute={"precision": "mixed_bfloat16"})
    assert (run.workdir / "export" / "1" / "saved_model.pb").is_file()
    assert all(v.dtype == "float32" for v in run.model.trainable_variables)


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("adapter", "dora")),
        *("prefix", "qlora"),
    ],
)
def test_exported(config, tmp_path, name):
    """One of each kind: merged, left as it is, with other keys, with other kernels."""
    config = changed(config, name)
    config["export"] = {"enabled": True}
    run = tfft.train(config, workdir=tmp_path / "run")
    served = tf.saved_model.load(str(run.workdir / "export" / "1"))
    answer = served.signatures["serving_default"](text=tf.constant(ROWS))
    expected = tf.nn.softmax(run.logits(ROWS)).numpy()
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)
