"""Tests of methods against the `peft` package (PyTorch): features and gradients of a tiny BERT."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from pydantic import TypeAdapter

from tfft import backbones
from tfft.config import MethodConfig, ModelConfig
from tfft.methods import METHODS
from tfft.spec import Stage

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = {
    "lora": {"rank": 4, "alpha": 6},
    "lora_rank_stabilized": {
        "rank": 4,
        "alpha": 6,
        "scaling": "rank_stabilized",
        "targets": "query|key|value|attention/out|up|down",
    },
    "dora": {"rank": 4, "alpha": 6},
    "ia3": {},
    "adapter_houlsby": {"width": 6, "placement": "houlsby"},
    "adapter_pfeiffer": {"width": 6},
    "prompt": {"length": 5},
    "prefix": {"length": 5},
}


def build_with_golden_values(name):
    """Return the encoder with a method's variables at the values of the golden file."""
    golden = np.load(GOLDEN / "methods" / f"{name}.npz")
    backbone = backbones.load(ModelConfig(backbone=f"hf:{GOLDEN / 'encoders' / 'bert'}"))
    encoder = backbone.model
    model = keras.Model({t.name: t for t in encoder.inputs}, encoder.output["sequence"])
    method = name.split("_")[0]
    config = TypeAdapter(MethodConfig).validate_python({"name": method, **CASES[name]})
    METHODS[method].apply(model, (*backbone.stages, Stage("head", "head/")), config)
    values = {k.split("|")[1]: golden[k] for k in golden.files if k.startswith("value|")}
    variables = {v.path: v for v in model.weights if v.path in values}
    assert set(variables) == set(values)
    for path, variable in variables.items():
        variable.assign(values[path])
    return model, variables, golden


@pytest.mark.parametrize("name", CASES)
def test_features_and_gradients_equal_peft(name):
    model, variables, golden = build_with_golden_values(name)
    expected = np.load(GOLDEN / "encoders" / "bert" / "expected.npz")
    inputs = {n: expected[n] for n in ("token_ids", "padding_mask", "segment_ids")}
    if name == "prompt":  # peft does not use segments
        inputs["segment_ids"] = np.zeros_like(inputs["segment_ids"])
    with tf.GradientTape() as tape:
        features = model(inputs)
        total = tf.reduce_sum(features * golden["weights"])
    is_token = expected["padding_mask"] == 1
    assert np.abs(features.numpy() - golden["sequence"])[is_token].max() < 1e-5
    gradients = tape.gradient(total, [v.value for v in variables.values()])
    for path, gradient in zip(variables, gradients, strict=True):
        expected_gradient = golden[f"gradient|{path}"]
        assert np.abs(expected_gradient).max() > 0, path
        np.testing.assert_allclose(gradient, expected_gradient, atol=1e-4, rtol=1e-4, err_msg=path)
