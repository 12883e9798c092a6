"""Schedules against transformers' formulas; decay, clipping and factors against numpy."""

import keras
import numpy as np
import pytest

from tfft import optim
from tfft.config import OptimizerConfig
from tfft.phases import single
from tfft.spec import Mask


def build(mask=None, **settings):
    settings = {"schedule": "constant", "warmup": "0 steps", "clip_norm": None, **settings}
    return optim.build(OptimizerConfig(**settings), single(mask or Mask(()), 100), 10)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_schedule(kind):
    schedule = optim.WarmUpAndDecay(2.0, kind, 10, 110)

    def expected(step):
        if step < 10:
            return 2.0 * step / 10
        t = (step - 10) / 100
        return 2.0 * {"constant": 1, "linear": 1 - t, "cosine": (1 + np.cos(np.pi * t)) / 2}[kind]

    for step in (0, 1, 9, 10, 11, 60, 109, 110):
        assert float(schedule(step)) == pytest.approx(expected(step), abs=1e-6)


def variables():
    kernel = keras.Variable(np.full((2, 2), 2.0, np.float32), name="kernel")
    bias = keras.Variable(np.full(2, 2.0, np.float32), name="bias")
    return [kernel, bias]


def test_decay_spares_vectors():
    kernel, bias = variables()
    optimizer = build(learning_rate=0.1, weight_decay=0.5)
    optimizer.apply([np.zeros((2, 2), np.float32), np.zeros(2, np.float32)], [kernel, bias])
    np.testing.assert_allclose(kernel.value, 2.0 * (1 - 0.1 * 0.5))
    np.testing.assert_allclose(bias.value, 2.0)


def test_adamw_step_against_numpy():
    kernel, bias = variables()
    gradients = [np.array([[1, -2], [3, 4]], np.float32), np.array([5, -6], np.float32)]
    optimizer = build(learning_rate=0.01, weight_decay=0.1, clip_norm=1.0)
    norm = np.sqrt(sum((g**2).sum() for g in gradients))
    m = [np.zeros_like(g) for g in gradients]
    v = [np.zeros_like(g) for g in gradients]
    expected = [np.full((2, 2), 2.0), np.full(2, 2.0)]
    for step in (1, 2, 3):
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients], [kernel, bias])
        for i, g in enumerate(gradients):
            g = g / norm
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g * g
            if i == 0:
                expected[i] = expected[i] * (1 - 0.01 * 0.1)
            rate = 0.01 * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            expected[i] = expected[i] - rate * m[i] / (np.sqrt(v[i]) + 1e-8)
    np.testing.assert_allclose(kernel.value, expected[0], rtol=1e-5)
    np.testing.assert_allclose(bias.value, expected[1], rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_factor_scales_the_update(name):
    first, second = variables()[0], variables()[0]
    mask = Mask((), {second.path: 0.25})
    second_only = build(mask, name=name, learning_rate=0.1, weight_decay=0.0)
    plain = build(name=name, learning_rate=0.1, weight_decay=0.0)
    gradient = np.ones((2, 2), np.float32)
    plain.apply([gradient], [first])
    second_only.apply([gradient], [second])
    moved = 2.0 - np.asarray(first.value), 2.0 - np.asarray(second.value)
    np.testing.assert_allclose(moved[1], 0.25 * moved[0], rtol=1e-5)
