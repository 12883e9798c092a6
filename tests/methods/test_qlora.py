"""The codes of frozen kernels: how near they are, what they take, what they leave."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfft.methods.qlora import Codes, decode, encode
from tfft.model import injection


@pytest.mark.parametrize(
    ("bits", "inputs", "group"), [(8, 12, 12), (8, 7, 7), (4, 12, 4), (4, 13, 4), (4, 6, 64)]
)
def test_codes_are_within_half_a_level(bits, inputs, group):
    kernel = np.random.default_rng(0).normal(size=(inputs, 5)).astype(np.float32)
    kernel[:, 2] = 0  # has no scale
    codes, scales = encode(kernel, bits, group)
    assert codes.nbytes == (kernel.size if bits == 8 else -(-inputs // 2) * 5)
    found = np.asarray(decode(tf.constant(codes), tf.constant(scales), bits, group, kernel.shape))
    half = np.repeat(scales, group, axis=0)[:inputs] / 2
    assert np.all(np.abs(found - kernel) <= half * (1 + 1e-5))
    assert not found[:, 2].any()
    levels = 127 if bits == 8 else 7  # the largest of a group is kept
    np.testing.assert_allclose(np.abs(kernel[:group]).max(axis=0), scales[0] * levels, rtol=1e-6)


@pytest.mark.parametrize("bits", [8, 4])
def test_product_and_its_gradient_are_those_of_the_decoded_kernel(bits):
    rng = np.random.default_rng(0)
    layer = Codes(rng.normal(size=(6, 5)).astype(np.float32), bits, 4)
    x = tf.constant(rng.normal(size=(2, 3, 6)), tf.float32)
    upstream = tf.constant(rng.normal(size=(2, 3, 5)), tf.float32)

    @tf.function
    def compute(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer.product(x, True)
        return y, tape.gradient(y, x, upstream)

    y, gradient = compute(x)
    kernel = np.asarray(layer.kernel())
    np.testing.assert_allclose(y, np.asarray(x) @ kernel, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, np.asarray(upstream) @ kernel.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["dense", "einsum"])
def test_the_kernel_itself_is_gone(kind):
    layer = (
        keras.layers.Dense(5)
        if kind == "dense"
        else keras.layers.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d")
    )
    layer.build((None, 3, 6))
    kernel = weakref.ref(layer._kernel)
    injection.replace_kernel(layer, lambda value: Codes(value, 8, 0, name="quantized"))
    gc.collect()
    assert kernel() is None
    assert [v.shape for v in layer.weights if v.path.endswith("codes")] == [(6, 5)]
