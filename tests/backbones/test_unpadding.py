"""Encoders without padding against PyTorch's transformers and against themselves with padding."""

import numpy as np
import pytest
import tensorflow as tf

from tests.backbones.test_huggingface import BOUND, CASES, GOLDEN, expected, inputs, load
from tests.methods.test_contract import built
from tfft.backbones.families.unpadding import Unpad, token_layout, without_padding
from tfft.methods import METHODS


def traced(model):
    """Return the model traced without padding, as in an export."""
    call = tf.function(lambda batch: model(batch, training=False), autograph=False)
    with without_padding(model):
        call = call.get_concrete_function(
            {name: tf.TensorSpec([None, None], tf.int32) for name in model.input}
        )
    return lambda batch: call({name: tf.constant(value) for name, value in batch.items()})


# The encoder of a checkpoint with a head runs the same code: slow only.
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if "_classifier" in n else n for n in CASES]
)
def test_features_equal_the_original(name):
    values = expected(name)
    assert (values["padding_mask"] == 0).any()
    actual = traced(load(GOLDEN / "encoders" / name).model)(inputs(values))
    is_token = values["padding_mask"] == 1
    assert np.abs(actual["sequence"].numpy() - values["sequence"])[is_token].max() < BOUND
    if "pooled" in values:
        assert np.abs(actual["pooled"].numpy() - values["pooled"]).max() < BOUND


@pytest.mark.parametrize("name", METHODS)
def test_methods_compute_the_same_without_padding(tiny, name):
    """Prompts put vectors before the text, prefixes put keys before the keys."""
    model, *_, batch = built(tiny, name)
    generator = np.random.default_rng(1)
    for variable in model.trainable_weights:
        noise = generator.normal(0, 0.1, variable.shape)
        variable.assign(np.asarray(variable.value) + noise.astype(np.float32))
    batch["padding_mask"] = (np.arange(9) < np.array([[9], [4], [2]])).astype(np.int32)
    padded = np.asarray(model(batch, training=False))
    np.testing.assert_allclose(traced(model)(batch).numpy(), padded, atol=1e-5)
    # Padding is back after `without_padding`.
    np.testing.assert_array_equal(model(batch, training=False), padded)


def test_blocks_get_only_real_tokens():
    encoder = load(GOLDEN / "encoders" / "bert").model
    shapes = []
    block = encoder.get_layer("block_1")
    call = block.call
    block.call = lambda x, bias, training=False: shapes.append(x.shape) or call(x, bias, training)
    batch = {n: np.ones([3, 5], np.int32) for n in ("token_ids", "padding_mask", "segment_ids")}
    batch["padding_mask"][1, 2:] = 0
    width = encoder.output["sequence"].shape[-1]
    with without_padding(encoder):
        encoder(batch, training=False)
    encoder(batch, training=False)
    assert shapes == [(12, width), (3, 5, width)]


def test_unpadding_is_disabled_after_an_error():
    encoder = load(GOLDEN / "encoders" / "bert").model
    (layer,) = [x for x in encoder.layers if isinstance(x, Unpad)]
    with pytest.raises(RuntimeError), without_padding(encoder):
        assert layer.enabled
        raise RuntimeError
    assert not layer.enabled


def test_token_layout_of_a_small_batch():
    bias = tf.constant([[0.0, -1e9, -1e9], [0, 0, -1e9]])[:, None, None]
    layout = token_layout(bias)
    assert layout.flat_positions.numpy().tolist() == [0, 3, 4]
    assert layout.token_indices.numpy().tolist() == [0, 0, 0, 1, 2, 2]
    x = tf.reshape(tf.range(12.0), [2, 3, 2])
    np.testing.assert_array_equal(layout.unpad(x), [[0, 1], [6, 7], [8, 9]])
    assert layout.repad(layout.unpad(x)).shape == (2, 3, 2)


def test_rows_of_padding_alone_and_left_padding():
    """Rows of padding alone do not depend on other rows; left padding gives the padded features."""
    encoder = load(GOLDEN / "encoders" / "bert").model
    call = traced(encoder)
    ids = np.random.default_rng(0).integers(5, 40, (3, 5)).astype(np.int32)
    mask = np.array([[1, 1, 1, 1, 0], [0, 0, 0, 0, 0], [0, 0, 1, 1, 1]], np.int32)
    batch = {"token_ids": ids, "padding_mask": mask, "segment_ids": ids * 0}
    unpadded, padded = call(batch), encoder(batch, training=False)
    np.testing.assert_allclose(unpadded["pooled"][2], padded["pooled"][2], atol=BOUND)
    np.testing.assert_allclose(unpadded["sequence"][2, 2:], padded["sequence"][2, 2:], atol=BOUND)
    single_row = call({name: value[1:2] for name, value in batch.items()})
    np.testing.assert_allclose(single_row["pooled"][0], unpadded["pooled"][1], atol=BOUND)
    assert np.isfinite(single_row["pooled"]).all()
