"""Contract tests of all methods in the table; a new method is tested without changes here."""

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
from tfft.config import MethodConfig, ModelConfig, OptimizerConfig
from tfft.config.tasks import TextClassification
from tfft.methods import METHODS
from tfft.model import assemble, masks, stages
from tfft.tasks import TASKS
from tfft.training import phases

# Options without a default.
REQUIRED = {
    "top": {"stages": 1},
    "prompt": {"length": 4},
    "qlora": {"targets": "query|value", "group": 4},
}
MASK = [{"match": "block_0"}, {"match": "head"}, {"match": "*", "trainable": False}]
MERGED = {"lora", "dora", "ia3"}
MIRRORED = {"strategy": "mirrored", "devices": ["CPU:0", "CPU:1"]}
ROWS = ["a red sky", "the blue apple like grass", "green"]
STEPS, KILLED = 54, 10  # the last checkpoint is within an epoch, before most changes of phase


def section(name, **options):
    return {"name": name, **REQUIRED.get(name, {}), **options}


def with_method(config, name, **options):
    """Set the method of a config, in place, and return the config."""
    config["method"] = section(name, **options)
    if name == "mask":
        config["mask"] = MASK
    return config


def built(tiny, name, **options):
    """Return (model, stages, phases, output before `apply`, output after `apply`, inputs)."""
    keras.utils.set_random_seed(0)
    backbone = backbones.load(ModelConfig(backbone=f"hf:{tiny}"))
    model = assemble(backbone, TASKS["text_classification"], TextClassification(), list("abc"))
    model_stages = stages(backbone, model)
    ids = np.random.default_rng(0).integers(5, 60, (3, 9)).astype(np.int32)
    inputs = {"token_ids": ids, "padding_mask": ids * 0 + 1, "segment_ids": ids * 0}
    initial_output = np.asarray(model(inputs, training=False))
    config = TypeAdapter(MethodConfig).validate_python(section(name, **options))
    method_phases = METHODS[name].apply(model, model_stages, config)
    return (
        model,
        model_stages,
        method_phases,
        initial_output,
        np.asarray(model(inputs, training=False)),
        inputs,
    )


@pytest.mark.parametrize("name", METHODS)
def test_method_is_the_identity_at_first(tiny, name):
    *_, initial_output, output, _ = built(tiny, name)
    if METHODS[name].identity:
        np.testing.assert_allclose(output, initial_output, atol=1e-6)
    else:
        assert np.abs(output - initial_output).max() > 0


@pytest.mark.parametrize("name", METHODS)
def test_frozen_variables_have_no_gradient_and_no_slot(tiny, name):
    model, model_stages, method_phases, *_ = built(tiny, name)
    rules = [phases.Rule(r["match"], r.get("trainable", True)) for r in MASK if name == "mask"]
    schedule = phases.resolve(model, model_stages, method_phases, rules, OptimizerConfig(), 10, 100)
    masks.set_trainable(model, schedule.at(0).mask)
    trainable = {e.path for e in schedule.at(0).mask.entries if e.trainable}
    assert {v.path for v in model.trainable_variables} == trainable
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    assert len(optimizer.variables) == 2 + 2 * len(trainable)


@pytest.mark.parametrize("name", sorted(MERGED))
def test_merge_is_exact_and_undone_to_the_bit(tiny, name):
    options = {} if name == "ia3" else {"targets": "query|value|up|down", "rank": 3}
    model, *_, inputs = built(tiny, name, **options)
    generator = np.random.default_rng(1)
    for variable in model.weights:
        if f"/{name}/" in variable.path:
            noise = generator.normal(0, 0.2, variable.shape)
            variable.assign(np.asarray(variable.value) + noise.astype(np.float32))
    original = {v.path: np.array(v.value) for v in model.weights}
    expected = np.asarray(model(inputs, training=False))
    with model.merged() as layers:
        assert layers
        assert not [v.path for v in model.weights if f"/{name}/" in v.path]
        np.testing.assert_allclose(model(inputs, training=False), expected, atol=1e-5)
    for variable in model.weights:
        np.testing.assert_array_equal(
            original[variable.path], variable.value, err_msg=variable.path
        )
    np.testing.assert_array_equal(model(inputs, training=False), expected)


def pretrained_weights(tiny):
    backbone = backbones.load(ModelConfig(backbone=f"hf:{tiny}"))
    return {v.path: np.array(v.value) for v in backbone.model.weights}


# Phases, an adapter that is merged, and replaced kernels. The other methods are in the slow tests;
# tests/test_train.py runs `full`.
KINDS = ("gradual", "lora", "qlora")


def methods(quick):
    """Return all methods as parameters; those not in `quick` are marked slow."""
    return [pytest.param(n, marks=() if n in quick else pytest.mark.slow) for n in METHODS]


@pytest.mark.parametrize("name", methods(quick=KINDS))
def test_freeze_save_load_and_resume(config, tiny, tmp_path, name):
    config = with_method(config, name)
    config["train"] |= {"epochs": STEPS // 6, "checkpoint": {"every": "10 steps", "keep": 9}}
    run = tfft.train(config, workdir=tmp_path / "undisturbed")
    assert run.metrics["steps"] == STEPS

    # Frozen means bit-equal.
    values = {v.path: np.array(v.value) for v in run.model.weights}
    description = json.loads((run.workdir / "best" / "model.json").read_text())
    trained = set(values) if description["trained"] is None else set(description["trained"])
    initial = pretrained_weights(tiny)
    for path in set(initial) & set(values) - trained:
        np.testing.assert_array_equal(values[path], initial[path], err_msg=path)
    changed = [p for p in trained & set(initial) if not np.array_equal(values[p], initial[p])]
    new = trained - set(initial)
    assert changed or new

    # The file holds the trained variables only, and they are enough to load the model.
    assert set(load_file(run.workdir / "best" / "weights.safetensors")) == trained
    loaded = tfft.load(run.workdir)
    np.testing.assert_allclose(loaded.logits(ROWS), run.logits(ROWS), atol=1e-6)

    # A resumed run ends with the weights of the undisturbed run, to the bit.
    resumed = tfft.train(config, workdir=copy_killed(run.workdir, tmp_path / "resumed", KILLED))
    for variable in resumed.model.weights:
        np.testing.assert_array_equal(variable.value, values[variable.path], variable.path)


@pytest.mark.parametrize("name", methods(quick=("lora",)))
def test_two_replicas(config, tmp_path, name):
    config = with_method(config, name)
    config["model"]["dropout"] = 0.0
    config["task"] = {"dropout": 0.0}
    config["train"]["cache_features"] = False
    one = tfft.train(config, workdir=tmp_path / "one")
    two = tfft.train(config, workdir=tmp_path / "two", distribute=MIRRORED)
    for a, b in zip(one.model.weights, two.model.weights, strict=True):
        np.testing.assert_allclose(a.value, keras.ops.convert_to_numpy(b), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_export_after_bfloat16(config, tmp_path, name):
    """A model trained in mixed precision is exported, and the export verified."""
    config = with_method(config, name)
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
def test_export(config, tmp_path, name):
    """One method of each kind: merged, kept, with additional keys, with replaced kernels."""
    config = with_method(config, name)
    config["export"] = {"enabled": True}
    run = tfft.train(config, workdir=tmp_path / "run")
    served = tf.saved_model.load(str(run.workdir / "export" / "1"))
    answer = served.signatures["serving_default"](text=tf.constant(ROWS))
    expected = tf.nn.softmax(run.logits(ROWS)).numpy()
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)
