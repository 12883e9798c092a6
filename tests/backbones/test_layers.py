"""Dropout of the encoders."""

import numpy as np
import pytest
import tensorflow as tf

from tfft.backbones.families.layers import Dropout


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_rate_and_mean(rate):
    layer = Dropout(rate, seed=1)
    x = tf.ones([400, 500])
    y = np.asarray(layer(x, training=True))
    assert (y == 0).mean() == pytest.approx(rate, abs=0.005)
    assert y.mean() == pytest.approx(1.0, abs=0.005)
    second_draw = np.asarray(layer(x, training=True))
    assert not np.array_equal(y, second_draw)


def test_dropout_traces_with_unknown_shape():
    layer = Dropout(0.3, seed=1)
    run = tf.function(
        lambda x: layer(x, training=True), input_signature=[tf.TensorSpec([None, None])]
    )
    y = run(tf.ones([7, 9])).numpy()
    assert 0 < (y == 0).sum() < 63


def test_dropout_is_off_in_inference_and_in_frozen_stages():
    layer = Dropout(0.3)
    x = tf.ones([8, 8])
    np.testing.assert_array_equal(layer(x, training=False), x)
    layer.trainable = False  # a frozen stage computes as in inference
    np.testing.assert_array_equal(layer(x, training=True), x)
    with pytest.raises(ValueError, match="Received: rate=1"):
        Dropout(1)
