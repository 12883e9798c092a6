"""The linear probe and what the advisor concludes from it."""

import dataclasses
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from sklearn.linear_model import Ridge

import tfft
from tests.conftest import GOLDEN
from tests.methods.test_auto import FACTS
from tests.tasks.test_image_runs import write_folder
from tfft.config import parse
from tfft.evaluation import linear_probe
from tfft.methods.auto import advise


@pytest.mark.parametrize("shape", [(40, 7), (12, 30)])
def test_least_squares_is_ridge_regression(shape):
    generator = np.random.default_rng(0)
    x, held_out_x = generator.normal(2, 3, shape), generator.normal(2, 3, (9, shape[1]))
    labels = generator.integers(0, 3, shape[0])
    scores = linear_probe.least_squares(x, labels, held_out_x, 3)
    mean, deviation = x.mean(0), x.std(0)
    model = Ridge(alpha=linear_probe.RIDGE).fit(
        (x - mean) / deviation, np.where(np.arange(3) == labels[:, None], 1, -1)
    )
    np.testing.assert_allclose(scores, model.predict((held_out_x - mean) / deviation), rtol=1e-6)


def run_probe(labels, classes=3, features=None):
    """Return the probe of rows with the given features."""
    features = np.eye(classes)[labels] if features is None else features
    image = keras.Input([features.shape[1]], name="image")
    model = keras.Model({"image": image}, {"pooled": keras.layers.Identity()(image)})
    rows = SimpleNamespace(arrays=lambda b: {"image": features[b.positions].astype(np.float32)})
    split = SimpleNamespace(targets=labels, lengths=np.ones(len(labels), np.int64))
    return linear_probe.probe(model, rows, split, classes, 0)


def test_probe_of_class_features_and_of_noise():
    labels = np.random.default_rng(0).integers(0, 3, 200)
    perfect = run_probe(labels)
    assert (perfect.accuracy, perfect.num_fitted, perfect.num_held_out) == (1.0, 30, 30)
    assert perfect.chance == pytest.approx(1 / 3)
    noise = run_probe(labels, features=np.random.default_rng(1).normal(size=(200, 5)))
    assert noise.accuracy < 0.7
    assert run_probe(np.arange(3)) is None  # one row per class: none to hold out
    assert run_probe(np.zeros((4, 3), np.float32), features=np.eye(4)) is None  # several labels


IMAGE_CONFIG = {
    "data": {"train": "images/"},
    "model": {"backbone": "keras:MobileNetV2"},
    "task": {"name": "image_classification"},
    "method": {"name": "auto"},
}


@pytest.mark.parametrize(
    ("facts", "method", "epochs"),
    [
        ({"probe_accuracy": (0.6, 0.1)}, "lp_ft", 5),
        ({"probe_accuracy": (0.99, 0.1)}, "head", 20),
        ({"probe_accuracy": (0.12, 0.1)}, "full", 5),
        ({"probe_accuracy": None}, "lp_ft", 5),
        ({"probe_accuracy": (0.6, 0.1), "num_rows": 100}, "lp_ft", 30),
        ({"probe_accuracy": (0.6, 0.1), "num_rows": 50_000}, "lp_ft", 7),
        ({"probe_accuracy": (0.6, 0.1), "time_limit": 50.0, "num_blocks": 17}, "top", 5),
        ({"probe_accuracy": (0.6, 0.1), "time_limit": 15.0}, "head", 20),
    ],
)
def test_advice_for_images(facts, method, epochs):
    changed_facts = dataclasses.replace(FACTS, mean_tokens=None, **facts)
    config, reasons = advise(parse(IMAGE_CONFIG), changed_facts)
    assert (config.method.name, config.train.epochs) == (method, epochs)
    assert bool(config.augmentation.mixup) == (changed_facts.num_rows >= 20_000)
    assert not any("TREC" in line for line in reasons)


def test_image_run_takes_the_advice(tmp_path):
    write_folder(tmp_path / "train", 12, 0)
    config = {
        **IMAGE_CONFIG,
        "data": {"train": f"{tmp_path / 'train'}/", "validation": {"fraction": 0.25}},
        "model": {"backbone": f"hf:{GOLDEN / 'vision' / 'resnet'}", "image_size": 32},
        "train": {"epochs": 1},
        "evaluate": {"bootstrap": 0, "baselines": False},
        "export": {"enabled": False},
    }
    run = tfft.train(config, tmp_path / "run")
    assert run.config.method.name in ("full", "lp_ft", "head")
    assert "a probe fitted to a few rows" in (run.workdir / "advice.txt").read_text()
