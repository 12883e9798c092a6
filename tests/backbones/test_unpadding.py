"""Encoders that compute without padding, beside PyTorch's transformers and themselves with it."""

import numpy as np
import pytest
import tensorflow as tf

from tests.backbones.test_huggingface import BOUND, CASES, GOLDEN, expected, inputs, load
from tests.methods.test_contract import built
from tfft.backbones.families.unpadding import Unpad, packed, places
from tfft.methods import METHODS


def traced(model):
    """The model as an export's graph has it."""
    call = tf.function(lambda given: model(given, training=False), autograph=False)
    with packed(model):
        call = call.get_concrete_function(
            {name: tf.TensorSpec([None, None], tf.int32) for name in model.input}
        )
    return lambda given: call({name: tf.constant(value) for name, value in given.items()})


# An encoder is computed alike under a stored head, which is not part of it.
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if "_classifier" in n else n for n in CASES]
)
def test_features_equal_the_original(name):
    values = expected(name)
    assert (values["padding_mask"] == 0).any()
    found = traced(load(GOLDEN / "encoders" / name).model)(inputs(values))
    real = values["padding_mask"] == 1
    assert np.abs(found["sequence"].numpy() - values["sequence"])[real].max() < BOUND
    if "pooled" in values:
        assert np.abs(found["pooled"].numpy() - values["pooled"]).max() < BOUND


@pytest.mark.parametrize("name", METHODS)
def test_every_method(tiny, name):
    """Also where vectors stand before the text, or keys before the keys."""
    model, *_, given = built(tiny, name)
    generator = np.random.default_rng(1)
    for variable in model.trainable_weights:
        noise = generator.normal(0, 0.1, variable.shape)
        variable.assign(np.asarray(variable.value) + noise.astype(np.float32))
    given["padding_mask"] = (np.arange(9) < np.array([[9], [4], [2]])).astype(np.int32)
    live = np.asarray(model(given, training=False))
    np.testing.assert_allclose(traced(model)(given).numpy(), live, atol=1e-5)
    np.testing.assert_array_equal(model(given, training=False), live)  # off again


def test_blocks_get_the_real_tokens_alone():
    encoder = load(GOLDEN / "encoders" / "bert").model
    seen = []
    block = encoder.get_layer("block_1")
    call = block.call
    block.call = lambda x, bias, training=False: seen.append(x.shape) or call(x, bias, training)
    given = {n: np.ones([3, 5], np.int32) for n in ("token_ids", "padding_mask", "segment_ids")}
    given["padding_mask"][1, 2:] = 0
    width = encoder.output["sequence"].shape[-1]
    with packed(encoder):
        encoder(given, training=False)
    encoder(given, training=False)
    assert seen == [(12, width), (3, 5, width)]


def test_off_outside_and_after_an_error():
    encoder = load(GOLDEN / "encoders" / "bert").model
    (layer,) = [x for x in encoder.layers if isinstance(x, Unpad)]
    with pytest.raises(RuntimeError), packed(encoder):
        assert layer.on
        raise RuntimeError
    assert not layer.on


def test_places_by_hand():
    bias = tf.constant([[0.0, -1e9, -1e9], [0, 0, -1e9]])[:, None, None]
    found = places(bias)
    assert found.taken.numpy().tolist() == [0, 3, 4]
    assert found.given.numpy().tolist() == [0, 0, 0, 1, 2, 2]
    x = tf.reshape(tf.range(12.0), [2, 3, 2])
    np.testing.assert_array_equal(found.packed(x), [[0, 1], [6, 7], [8, 9]])
    assert found.spread(found.packed(x)).shape == (2, 3, 2)


def test_padding_alone_and_padding_first():
    """The first has no answer that means anything, but none that hangs on other rows either; the
    second has the live model's."""
    encoder = load(GOLDEN / "encoders" / "bert").model
    call = traced(encoder)
    ids = np.random.default_rng(0).integers(5, 40, (3, 5)).astype(np.int32)
    mask = np.array([[1, 1, 1, 1, 0], [0, 0, 0, 0, 0], [0, 0, 1, 1, 1]], np.int32)
    given = {"token_ids": ids, "padding_mask": mask, "segment_ids": ids * 0}
    found, live = call(given), encoder(given, training=False)
    np.testing.assert_allclose(found["pooled"][2], live["pooled"][2], atol=BOUND)
    np.testing.assert_allclose(found["sequence"][2, 2:], live["sequence"][2, 2:], atol=BOUND)
    alone = call({name: value[1:2] for name, value in given.items()})
    np.testing.assert_allclose(alone["pooled"][0], found["pooled"][1], atol=BOUND)
    assert np.isfinite(alone["pooled"]).all()
