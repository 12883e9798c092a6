"""The least-squares probe and what the advisor makes of it."""

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
    x, other = generator.normal(2, 3, shape), generator.normal(2, 3, (9, shape[1]))
    labels = generator.integers(0, 3, shape[0])
    scores = linear_probe.least_squares(x, labels, other, 3)
    mean, deviation = x.mean(0), x.std(0)
    model = Ridge(alpha=linear_probe.RIDGE).fit(
        (x - mean) / deviation, np.where(np.arange(3) == labels[:, None], 1, -1)
    )
    np.testing.assert_allclose(scores, model.predict((other - mean) / deviation), rtol=1e-6)


def probed(labels, classes=3, features=None):
    """A probe of rows whose features are given."""
    features = np.eye(classes)[labels] if features is None else features
    image = keras.Input([features.shape[1]], name="image")
    model = keras.Model({"image": image}, {"pooled": keras.layers.Identity()(image)})
    rows = SimpleNamespace(arrays=lambda b: {"image": features[b.positions].astype(np.float32)})
    split = SimpleNamespace(labels=labels, lengths=np.ones(len(labels), np.int64))
    return linear_probe.probe(model, rows, split, classes, 0)


def test_features_that_are_the_classes_are_known_and_others_are_not():
    labels = np.random.default_rng(0).integers(0, 3, 200)
    found = probed(labels)
    assert (found.accuracy, found.learned, found.held) == (1.0, 30, 30)
    assert found.chance == pytest.approx(1 / 3)
    noise = probed(labels, features=np.random.default_rng(1).normal(size=(200, 5)))
    assert noise.accuracy < 0.7
    assert probed(np.arange(3)) is None  # one row a class: none to judge by
    assert probed(np.zeros((4, 3), np.float32), features=np.eye(4)) is None  # tags


PICTURES = {
    "data": {"train": "pictures/"},
    "model": {"backbone": "keras:MobileNetV2"},
    "task": {"name": "image_classification"},
    "method": {"name": "auto"},
}


@pytest.mark.parametrize(
    ("facts", "method", "epochs"),
    [
        ({"probe": (0.6, 0.1)}, "lp_ft", 5),
        ({"probe": (0.99, 0.1)}, "head", 20),
        ({"probe": (0.12, 0.1)}, "full", 5),
        ({"probe": None}, "lp_ft", 5),
        ({"probe": (0.6, 0.1), "rows": 100}, "lp_ft", 30),
        ({"probe": (0.6, 0.1), "rows": 50_000}, "lp_ft", 7),
        ({"probe": (0.6, 0.1), "seconds": 50.0, "blocks": 17}, "top", 5),
        ({"probe": (0.6, 0.1), "seconds": 15.0}, "head", 20),
    ],
)
def test_rules_for_pictures(facts, method, epochs):
    own = dataclasses.replace(FACTS, tokens=None, **facts)
    config, reasons = advise(parse(PICTURES), own)
    assert (config.method.name, config.train.epochs) == (method, epochs)
    assert bool(config.augmentation.mixup) == (own.rows >= 20_000)
    assert not any("TREC" in line for line in reasons)


def test_a_run_on_pictures_is_advised(tmp_path):
    write_folder(tmp_path / "train", 12, 0)
    config = {
        **PICTURES,
        "data": {"train": f"{tmp_path / 'train'}/", "validation": {"fraction": 0.25}},
        "model": {"backbone": f"hf:{GOLDEN / 'vision' / 'resnet'}", "image_size": 32},
        "train": {"epochs": 1},
        "evaluate": {"bootstrap": 0, "baselines": False},
        "export": {"enabled": False},
    }
    run = tfft.train(config, tmp_path / "run")
    assert run.config.method.name in ("full", "lp_ft", "head")
    assert "a probe fitted to a few rows" in (run.workdir / "advice.txt").read_text()
