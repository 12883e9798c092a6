"""Tests of quantized kernels: accuracy, size, gradients, and that the kernel is freed."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfft.methods.qlora import QuantizedKernel, decode, encode
from tfft.model import injection


@pytest.mark.parametrize(
    ("bits", "inputs", "group"), [(8, 12, 12), (8, 7, 7), (4, 12, 4), (4, 13, 4), (4, 6, 64)]
)
def test_codes_are_within_half_a_level(bits, inputs, group):
    kernel = np.random.default_rng(0).normal(size=(inputs, 5)).astype(np.float32)
    kernel[:, 2] = 0  # has a scale of 0
    codes, scales = encode(kernel, bits, group)
    assert codes.nbytes == (kernel.size if bits == 8 else -(-inputs // 2) * 5)
    decoded = np.asarray(decode(tf.constant(codes), tf.constant(scales), bits, group, kernel.shape))
    half_level = np.repeat(scales, group, axis=0)[:inputs] / 2
    assert np.all(np.abs(decoded - kernel) <= half_level * (1 + 1e-5))
    assert not decoded[:, 2].any()
    levels = 127 if bits == 8 else 7  # the largest value of a group is exact
    np.testing.assert_allclose(np.abs(kernel[:group]).max(axis=0), scales[0] * levels, rtol=1e-6)


@pytest.mark.parametrize("bits", [8, 4])
def test_product_and_gradient_equal_those_of_the_decoded_kernel(bits):
    rng = np.random.default_rng(0)
    layer = QuantizedKernel(rng.normal(size=(6, 5)).astype(np.float32), bits, 4)
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
def test_replaced_kernel_is_freed(kind):
    layer = (
        keras.layers.Dense(5)
        if kind == "dense"
        else keras.layers.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d")
    )
    layer.build((None, 3, 6))
    kernel = weakref.ref(layer._kernel)
    injection.replace_kernel(layer, lambda value: QuantizedKernel(value, 8, 0, name="quantized"))
    gc.collect()
    assert kernel() is None
    assert [v.shape for v in layer.weights if v.path.endswith("codes")] == [(6, 5)]
