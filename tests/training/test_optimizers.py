"""Schedules against transformers' formulas; optimizer updates against numpy, Keras and PyTorch."""

from pathlib import Path
from typing import get_args

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfft.config import OptimizerConfig
from tfft.model import masks
from tfft.spec import Mask, Rule, Stage
from tfft.training import optimizers
from tfft.training.phases import single
from tfft.utils.errors import UserError


def build(mask=None, **settings):
    settings = {"schedule": "constant", "warmup": "0 steps", "clip_norm": None, **settings}
    return optimizers.build(OptimizerConfig(**settings), single(mask or Mask(()), 100), 10)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_schedule(kind):
    schedule = optimizers.WarmUpAndDecay(2.0, kind, 10, 110)

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


def train_kernels(optimizer, gradients):
    """Return two kernels after a step with each gradient; the last step is traced again."""
    kernels = [variables()[0], variables()[0]]
    optimizer.build(kernels)

    def step(gradient):
        optimizer.apply([gradient, 2 * gradient], kernels)

    first, second = tf.function(step), tf.function(step)
    for gradient in gradients[:-1]:
        first(tf.constant(gradient))
    second(tf.constant(gradients[-1]))
    return [kernel.numpy() for kernel in kernels]


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_the_shared_bias_correction_is_bit_identical_to_keras(name, amsgrad):
    """Two graphs, because shared tensors must not leak from one into the next."""
    gradients = np.random.default_rng(0).normal(size=(5, 2, 2)).astype(np.float32)
    settings = {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-6}
    keras_class = {"adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW}[name]
    decay = {"weight_decay": 0.1} if name == "adamw" else {}
    reference = keras_class(0.05, amsgrad=amsgrad, **settings, **decay)
    optimizer = build(
        name=name, learning_rate=0.05, options={"amsgrad": amsgrad}, **settings, **decay
    )
    assert isinstance(optimizer, optimizers.SharedBiasCorrection)
    expected, kernels = train_kernels(reference, gradients), train_kernels(optimizer, gradients)
    np.testing.assert_array_equal(kernels, expected)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_factor_scales_the_update(name):
    plain, scaled = variables()[0], variables()[0]
    mask = Mask((), {scaled.path: 0.25})
    scaled_optimizer = build(mask, name=name, learning_rate=0.1, weight_decay=0.0)
    plain_optimizer = build(name=name, learning_rate=0.1, weight_decay=0.0)
    gradient = np.ones((2, 2), np.float32)
    plain_optimizer.apply([gradient], [plain])
    scaled_optimizer.apply([gradient], [scaled])
    updates = 2.0 - np.asarray(plain.value), 2.0 - np.asarray(scaled.value)
    np.testing.assert_allclose(updates[1], 0.25 * updates[0], rtol=1e-5)


GOLDEN = Path(__file__).parents[1] / "golden" / "optim.npz"
STAGES = tuple(Stage(name, f"{name}/") for name in ("embeddings", "block_0", "head"))


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant", "polynomial"])
def test_layer_decay_schedule_clipping_and_adamw_against_pytorch(kind):
    """Compare with torch.optim.AdamW and transformers' schedules (reference/make_golden_optim)."""
    golden = np.load(GOLDEN)
    start = {k.split("|")[1]: golden[k] for k in golden.files if k.startswith("start|")}
    model_variables = {}
    for path, value in start.items():
        stage, layer, name = path.split("/")
        with keras.name_scope(stage), keras.name_scope(layer):
            model_variables[path] = keras.Variable(value, name=name)
    assert [v.path for v in model_variables.values()] == list(start)
    mask = masks.decide([(p, v.size) for p, v in start.items()], STAGES, (Rule("*", True),))
    schedule = single(masks.layer_decay(mask, STAGES, 0.5), 24)
    assert set(schedule.mask.learning_rates.values()) == {0.25, 0.5}
    config = OptimizerConfig(
        learning_rate=0.05, schedule=kind, warmup="5 steps", weight_decay=0.1, power=2.0
    )
    optimizer = optimizers.build(config, schedule, 8)
    values = list(model_variables.values())
    optimizer.build(values)
    for step in range(24):
        assert float(optimizer.learning_rate) == pytest.approx(
            golden[f"{kind}|rates"][step], abs=1e-7
        )
        gradients = [golden[f"gradient|{path}"][step] for path in model_variables]
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients], values)
        for path, variable in model_variables.items():
            expected = golden[f"{kind}|{path}"][step]
            # PyTorch adds 1e-6 to the norm when clipping: a difference of 2e-6 after 10 steps.
            np.testing.assert_allclose(variable.value, expected, atol=1e-5, err_msg=path)


def test_slanted_triangular_equals_the_paper():
    """Compare with Howard & Ruder 2018, equation 3."""
    total, cut_share, ratio = 100, 0.1, 32
    schedule = optimizers.WarmUpAndDecay(0.01, "slanted_triangular", 10, total, 1 / ratio)
    cut = int(total * cut_share)
    for t in range(total):
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_share - 1))
        expected = 0.01 * (1 + p * (ratio - 1)) / ratio
        assert float(schedule(t)) == pytest.approx(expected, rel=1e-5)


def test_a_restarting_schedule_counts_from_each_start():
    parts = [
        optimizers.WarmUpAndDecay(1.0, "linear", 0, 4),
        optimizers.WarmUpAndDecay(0.1, "linear", 2, 6),
    ]
    schedule = optimizers.RestartingSchedule([0, 4], parts)
    actual = [float(schedule(step)) for step in range(10)]
    expected = [float(parts[0](s)) for s in range(4)] + [float(parts[1](s)) for s in range(6)]
    assert actual == pytest.approx(expected)


@pytest.mark.parametrize("name", get_args(OptimizerConfig.model_fields["name"].annotation))
def test_every_keras_optimizer(name):
    """Each optimizer trains, takes factors, and refuses an unknown option."""
    variables_ = variables()
    mask = Mask((), {variables_[1].path: 0.5})
    optimizer = build(mask, name=name, learning_rate=0.01, weight_decay=0.0)
    optimizer.build(variables_)
    for _ in range(3):
        optimizer.apply([np.ones((2, 2), np.float32), np.ones(2, np.float32)], variables_)
    assert all(np.isfinite(v.value).all() for v in variables_)
    assert (np.asarray(variables_[0].value) < 2.0).all()
    with pytest.raises(UserError, match=f"{name} has no 'betta'"):
        build(mask, name=name, options={"betta": 1})


def test_options_reach_the_optimizer():
    assert build(name="rmsprop", options={"rho": 0.5}).rho == 0.5
    with pytest.raises(UserError, match="optimizer: sgd"):
        build(name="sgd", momentum=0.5, options={"momentum": 2.0})


def test_a_variable_that_starts_later_has_a_separate_bias_correction():
    """Adam's first update has the size of the learning rate, at any step."""
    early, late = variables()[0], variables()[0]
    optimizer = build(name="adam", learning_rate=0.1)
    optimizer.starts = {late.path: 2}
    optimizer.build([early, late])
    gradient = keras.ops.ones((2, 2))
    for _ in range(2):
        optimizer.apply([gradient], [early])
    start = np.array(late.value)
    optimizer.apply([gradient, gradient], [early, late])
    np.testing.assert_allclose(start - np.asarray(late.value), 0.1, rtol=1e-4)


def test_stochastic_weight_averaging():
    """The average is the mean of the weights after steps 4, 6, 8, 10; earlier, the weights."""
    kernel = keras.Variable(np.zeros((1, 1), np.float32), name="kernel")
    optimizer = build(
        name="sgd",
        learning_rate=1.0,
        momentum=0.0,
        weight_decay=0.0,
        swa={"start": "4 steps", "every": "2 steps"},
    )
    optimizer.build([kernel])
    weights = {}
    for step in range(1, 11):
        optimizer.apply([keras.ops.full((1, 1), -float(step))], [kernel])
        weights[step] = float(kernel.value[0, 0])
        average = float(optimizer._model_variables_moving_average[0][0, 0])
        averaged = [weights[s] for s in (4, 6, 8, 10) if s <= step]
        assert average == pytest.approx(np.mean(averaged) if averaged else weights[step])


def test_schedule_free_is_evaluated_at_the_average():
    """The average x_t is the mean of z_1 ... z_t (Defazio et al. 2024, c = 1 / t)."""
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1, use_bias=False)])
    model.compile(build(name="schedule_free_adamw", learning_rate=0.1, weight_decay=0.0))
    model.optimizer.build(model.trainable_variables)
    (kernel,) = model.trainable_variables
    z = []
    for step in range(5):
        model.optimizer.apply([keras.ops.full((1, 1), 1.0 + step)], [kernel])
        z.append(float(model.optimizer._momentums[0][0, 0]))
    y = float(kernel.value[0, 0])
    with optimizers.averaged(model):
        assert float(kernel.value[0, 0]) == pytest.approx(np.mean(z), rel=1e-4)
    assert float(kernel.value[0, 0]) == y
