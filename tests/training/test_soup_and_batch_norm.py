"""The greedy soup, and the statistics of BatchNorm."""

import json

import keras
import numpy as np
import pytest

import tfft
from tfft.model import batch_norm
from tfft.training.soup import Soup


def one_weight_model():
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1, use_bias=False)])
    return model, model.weights[0]


def test_the_soup_leaves_out_weights_that_make_it_worse(tmp_path):
    """Weights are added from the best down."""
    model, kernel = one_weight_model()
    soup = Soup(tmp_path, 3, None)
    # The score is the nearness to 1: 0.9 and 1.2 average to 1.05, and 3.0 would make it worse.
    for step, value in enumerate((9.0, 3.0, 1.2, 0.9), 1):
        kernel.assign([[value]])
        soup.offer(model, step, -abs(value - 1))
    assert sorted(p.stem for p in tmp_path.iterdir()) == [f"step_0000000{s}" for s in (2, 3, 4)]
    metric = soup.cook(model, lambda: -abs(float(kernel.numpy()[0, 0]) - 1), True)
    assert kernel.numpy()[0, 0] == pytest.approx(1.05)
    assert metric == pytest.approx(-0.05, abs=1e-6)


def test_a_resumed_run_replaces_weights_of_later_steps(tmp_path):
    model, _ = one_weight_model()
    soup = Soup(tmp_path, 3, None)
    for step in (1, 2, 3):
        soup.offer(model, step, float(step))
    soup.offer(model, 2, 2.5)
    assert sorted(p.stem for p in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]


def test_one_set_of_weights_is_not_averaged(tmp_path):
    model, _ = one_weight_model()
    soup = Soup(tmp_path, 3, None)
    soup.offer(model, 1, 1.0)
    assert soup.cook(model, lambda: 1.0, True) is None


def test_the_soup_of_a_run_is_saved_if_it_is_better(config, tmp_path, capfd):
    config["train"] |= {"epochs": 4, "soup": 3, "metric": "log_loss"}
    run = tfft.train(config, workdir=tmp_path / "run")
    assert "weights averaged" in capfd.readouterr().err
    loaded = tfft.load(run.workdir)
    for a, b in zip(run.model.weights, loaded.model.weights, strict=True):
        np.testing.assert_array_equal(a.value, b.value)
    best = min(
        line["validation/log_loss"]
        for line in map(json.loads, (run.workdir / "metrics.jsonl").open())
        if "validation/log_loss" in line
    )
    assert run.metrics["validation/log_loss"] <= best + 1e-6


def convolutional_model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input([8, 8, 3])
    x = keras.layers.Conv2D(4, 3, name="conv_0")(inputs)
    x = keras.layers.BatchNormalization(name="norm_0")(x)
    x = keras.layers.Conv2D(4, 3, activation="relu", name="conv_1")(x)
    x = keras.layers.BatchNormalization(name="norm_1")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x))
    generator = np.random.default_rng(0)
    for layer in batch_norm.layers(model):  # as in a pretrained model
        layer.moving_mean.assign(generator.normal(size=4))
        layer.moving_variance.assign(generator.uniform(0.5, 2, 4))
        layer.gamma.assign(generator.uniform(0.5, 2, 4))
    return model


def images(rows=64):
    return np.random.default_rng(1).normal(3.0, 2.0, (rows, 8, 8, 3)).astype(np.float32)


def test_frozen_layers_keep_their_statistics_in_training():
    model = convolutional_model()
    expected = np.asarray(model(images(), training=False))
    batch_norm.freeze(model)
    means = [np.array(layer.moving_mean) for layer in batch_norm.layers(model)]
    np.testing.assert_array_equal(model(images(), training=True), expected)
    model.compile("sgd", "mse")
    model.fit(images(), np.zeros((64, 2)), verbose=0)
    for layer, mean in zip(batch_norm.layers(model), means, strict=True):
        np.testing.assert_array_equal(layer.moving_mean, mean)


def test_adapt_sets_the_statistics_and_keeps_the_function():
    model = convolutional_model()
    x = images()
    expected = np.asarray(model(x, training=False))
    difference_without = np.abs(np.asarray(model(x, training=True)) - expected).max()
    model = convolutional_model()
    batch_norm.adapt(model, [x[:32], x[32:]])
    np.testing.assert_allclose(model(x, training=False), expected, atol=1e-4)
    first = batch_norm.layers(model)[0]
    features = np.asarray(model.get_layer("conv_0")(x)).reshape(-1, 4)
    np.testing.assert_allclose(first.moving_mean, features.mean(0), rtol=1e-4)
    np.testing.assert_allclose(first.moving_variance, features.var(0), rtol=1e-3)
    difference = np.abs(np.asarray(model(x, training=True)) - expected).max()
    assert difference < 1e-3 < difference_without


@pytest.mark.slow
def test_adapting_a_real_network_keeps_what_it_computes_and_lets_it_train(real_data):
    """Adapt ImageNet's MobileNetV2, whose weights have folded statistics (mean 0, variance 1)."""
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
    held_out, adapted_to = pixels[::5], np.delete(pixels, np.s_[::5], axis=0)

    def features(training):
        return np.asarray(model({"image": held_out}, training=training)["pooled"])

    def mean_cosine(training_mode, inference):
        a, b = training_mode - inference.mean(0), inference - inference.mean(0)
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        return float(np.mean((a * b).sum(1) / lengths))

    def with_weights_restored(function):
        originals = [(v, np.array(v.value)) for v in model.weights]
        result = function()
        for variable, value in originals:
            variable.assign(value)
        return result

    inference = features(False)
    original = mean_cosine(with_weights_restored(lambda: features(True)), inference)
    batch_norm.adapt(model, [{"image": part} for part in np.split(adapted_to, 4)])
    np.testing.assert_allclose(features(False), inference, atol=1e-3 * inference.max())
    adapted = mean_cosine(with_weights_restored(lambda: features(True)), inference)
    assert original < 0.3 and adapted > 0.8
