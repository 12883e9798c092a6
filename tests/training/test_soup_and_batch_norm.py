"""The greedy soup; and what happens to BatchNorm."""

import json

import keras
import numpy as np
import pytest

import tfft
from tfft.model import batch_norm
from tfft.training.soup import Soup


def one_weight():
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1, use_bias=False)])
    return model, model.weights[0]


def test_greedy(tmp_path):
    """From the best down; what makes it worse is left out."""
    model, kernel = one_weight()
    soup = Soup(tmp_path, 3, None)
    # worth is nearness to 1: 0.9 and 1.2 average to 1.05, then 3.0 would spoil it
    for step, value in enumerate((9.0, 3.0, 1.2, 0.9), 1):
        kernel.assign([[value]])
        soup.offer(model, step, -abs(value - 1))
    assert sorted(p.stem for p in tmp_path.iterdir()) == [f"step_0000000{s}" for s in (2, 3, 4)]
    found = soup.cook(model, lambda: -abs(float(kernel.numpy()[0, 0]) - 1), True)
    assert kernel.numpy()[0, 0] == pytest.approx(1.05)
    assert found == pytest.approx(-0.05, abs=1e-6)


def test_what_was_saved_after_the_last_checkpoint_comes_again(tmp_path):
    model, _ = one_weight()
    soup = Soup(tmp_path, 3, None)
    for step in (1, 2, 3):
        soup.offer(model, step, float(step))
    soup.offer(model, 2, 2.5)
    assert sorted(p.stem for p in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]


def test_one_is_no_soup(tmp_path):
    model, _ = one_weight()
    soup = Soup(tmp_path, 3, None)
    soup.offer(model, 1, 1.0)
    assert soup.cook(model, lambda: 1.0, True) is None


def test_on_the_road(config, tmp_path, capfd):
    config["train"] |= {"epochs": 4, "soup": 3, "metric": "log_loss"}
    run = tfft.train(config, workdir=tmp_path / "run")
    assert "weights averaged" in capfd.readouterr().err
    again = tfft.load(run.workdir)
    for a, b in zip(run.model.weights, again.model.weights, strict=True):
        np.testing.assert_array_equal(a.value, b.value)
    best = min(
        line["validation/log_loss"]
        for line in map(json.loads, (run.workdir / "metrics.jsonl").open())
        if "validation/log_loss" in line
    )
    assert run.metrics["validation/log_loss"] <= best + 1e-6


def convolutional():
    keras.utils.set_random_seed(0)
    inputs = keras.Input([8, 8, 3])
    x = keras.layers.Conv2D(4, 3, name="conv_0")(inputs)
    x = keras.layers.BatchNormalization(name="norm_0")(x)
    x = keras.layers.Conv2D(4, 3, activation="relu", name="conv_1")(x)
    x = keras.layers.BatchNormalization(name="norm_1")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x))
    generator = np.random.default_rng(0)
    for layer in batch_norm.layers(model):  # as after another training
        layer.moving_mean.assign(generator.normal(size=4))
        layer.moving_variance.assign(generator.uniform(0.5, 2, 4))
        layer.gamma.assign(generator.uniform(0.5, 2, 4))
    return model


def pictures(rows=64):
    return np.random.default_rng(1).normal(3.0, 2.0, (rows, 8, 8, 3)).astype(np.float32)


def test_frozen_keeps_statistics_and_mode():
    model = convolutional()
    expected = np.asarray(model(pictures(), training=False))
    batch_norm.freeze(model)
    kept = [np.array(layer.moving_mean) for layer in batch_norm.layers(model)]
    np.testing.assert_array_equal(model(pictures(), training=True), expected)
    model.compile("sgd", "mse")
    model.fit(pictures(), np.zeros((64, 2)), verbose=0)
    for layer, mean in zip(batch_norm.layers(model), kept, strict=True):
        np.testing.assert_array_equal(layer.moving_mean, mean)


def test_adapt_sets_the_statistics_and_keeps_the_function():
    model = convolutional()
    x = pictures()
    expected = np.asarray(model(x, training=False))
    far = np.abs(np.asarray(model(x, training=True)) - expected).max()
    model = convolutional()
    batch_norm.adapt(model, [x[:32], x[32:]])
    np.testing.assert_allclose(model(x, training=False), expected, atol=1e-4)
    first = batch_norm.layers(model)[0]
    seen = np.asarray(model.get_layer("conv_0")(x)).reshape(-1, 4)
    np.testing.assert_allclose(first.moving_mean, seen.mean(0), rtol=1e-4)
    np.testing.assert_allclose(first.moving_variance, seen.var(0), rtol=1e-3)
    near = np.abs(np.asarray(model(x, training=True)) - expected).max()
    assert near < 1e-3 < far


@pytest.mark.slow
def test_adapting_a_real_network_keeps_what_it_computes_and_lets_it_train(real_data):
    """ImageNet's MobileNetV2 with statistics that were folded away (mean 0, variance 1)."""
    from tfft import backbones
    from tfft.config import ModelConfig
    from tfft.preprocess import ImageInputs

    name = "mobilenet_v2_1.0_224_imagenet_notop.weights.h5"
    path = real_data.parent / "weights" / name
    if not path.is_file():
        pytest.skip(f"no weights at {path}")
    config = ModelConfig(backbone="keras:MobileNetV2", weights=str(path), image_size=96)
    backbone = backbones.load(config)
    model = backbone.model
    files = sorted((real_data / "cifar10_images" / "train").glob("*/*.jpg"))[::25]
    pixels = ImageInputs(backbone.image_spec).batch([str(f) for f in files])["image"]
    held, shown = pixels[::5], np.delete(pixels, np.s_[::5], axis=0)

    def features(training):
        return np.asarray(model({"image": held}, training=training)["pooled"])

    def alike(training_mode, inference):
        a, b = training_mode - inference.mean(0), inference - inference.mean(0)
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        return float(np.mean((a * b).sum(1) / lengths))

    def restored(do):
        kept = [(v, np.array(v.value)) for v in model.weights]
        found = do()
        for variable, value in kept:
            variable.assign(value)
        return found

    inference = features(False)
    destroyed = alike(restored(lambda: features(True)), inference)
    batch_norm.adapt(model, [{"image": part} for part in np.split(shown, 4)])
    np.testing.assert_allclose(features(False), inference, atol=1e-3 * inference.max())
    kept = alike(restored(lambda: features(True)), inference)
    assert destroyed < 0.3 and kept > 0.8
