"""keras.applications: what it computes itself, in stages that leave nothing out."""

import importlib

import keras
import numpy as np
import pytest

from tfft import backbones
from tfft.backbones import applications
from tfft.config import ModelConfig
from tfft.model import masks
from tfft.spec import Rule
from tfft.utils.errors import UserError

# One of each family: the module of its own preprocessing, the stages it has beside its blocks.
FAMILIES = {
    "ConvNeXtTiny": ("convnext", 18),
    "DenseNet121": ("densenet", 4),
    "EfficientNetB0": ("efficientnet", 16),
    "EfficientNetV2B0": ("efficientnet_v2", 21),
    "InceptionResNetV2": ("inception_resnet_v2", 43),
    "InceptionV3": ("inception_v3", 11),
    "MobileNet": ("mobilenet", 13),
    "MobileNetV2": ("mobilenet_v2", 17),
    "MobileNetV3Small": ("mobilenet_v3", 11),
    "NASNetMobile": ("nasnet", 16),
    "ResNet50": ("resnet", 16),
    "ResNet50V2": ("resnet_v2", 16),
    "VGG16": ("vgg16", 5),
    "Xception": ("xception", 13),
}
# One that scales pixels to [-1, 1], one that subtracts means.
QUICK = ("MobileNetV2", "VGG16")
CASES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES]


def load(name, size=75, **changes):
    return backbones.load(
        ModelConfig(backbone=f"keras:{name}", image_size=size, **{"weights": "none", **changes})
    )


def random_statistics(model):
    """Nothing at its first value, as after training."""
    generator = np.random.default_rng(0)
    for variable in model.weights:
        value = np.asarray(variable.value)
        scale = np.abs(value).mean() + 0.1
        noise = generator.uniform(0.0, 0.2, value.shape)
        variable.assign(value + scale * noise)


@pytest.mark.parametrize("name", CASES)
def test_features_are_kerass_and_stages_cover_all(name):
    module, blocks = FAMILIES[name]
    backbone = load(name)
    random_statistics(backbone.model)
    own = keras.applications.__dict__[name](
        weights=None, include_top=False, input_shape=(75, 75, 3), pooling="avg"
    )
    skipped = [v for layer in own.layers for v in _counts(layer)]
    wanted = [v for v in own.weights if id(v) not in skipped]
    assert len(wanted) == len(backbone.model.weights)
    for layer, source in _by_kind(own, backbone.model):
        for target, value in zip(layer, source, strict=True):
            target.assign(value)
    for layer in own.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.weights:
            layer.finalize_state()
    x = np.random.default_rng(1).uniform(0, 255, (2, 75, 75, 3)).astype(np.float32)
    preprocess = importlib.import_module(f"keras.applications.{module}").preprocess_input
    found = backbone.model.predict_on_batch({"image": x})
    expected = own.predict_on_batch(preprocess(x.copy()))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found["pooled"] / scale, expected / scale, atol=2e-5)

    names = [stage.name for stage in backbone.stages]
    assert names == sorted(names, key=lambda n: {"stem": -1, "top": 999}.get(n) or _number(n))
    assert sum(n.startswith("block_") for n in names) == blocks
    mask = masks.decide(masks.variables(backbone.model), backbone.stages, [Rule("*", True)])
    assert {entry.stage for entry in mask.entries} == set(names)


def _number(name):
    return int(name.removeprefix("block_")) if "_" in name else 0


def _counts(layer):
    """Keras' Normalization counts what it saw; nothing reads it afterwards."""
    is_normalization = isinstance(layer, keras.layers.Normalization)
    return [id(v) for v in layer.weights[2:]] if is_normalization else []


def _by_kind(own, ours):
    """Pairs of (variables of Keras' layer, of ours), in the order of the layers."""
    left = [layer for layer in own.layers if layer.weights]
    right = [layer for layer in ours.layers if layer.weights]
    for one, other in zip(left, right, strict=True):
        yield [v for v in one.weights if id(v) not in _counts(one)], other.weights


@pytest.fixture(scope="module")
def mobilenet():
    return load("MobileNetV2")


@pytest.mark.parametrize("name", ["MobileNetV2", pytest.param("Xception", marks=pytest.mark.slow)])
def test_rebuilt_under_the_same_names_in_any_order(mobilenet, name):
    backbone = mobilenet if name == "MobileNetV2" else load(name)
    keras.layers.Conv2D(1, 1)  # moves Keras' counters
    again = backbones.rebuild(dict(backbone.description))
    assert [v.path for v in again.model.weights] == [v.path for v in backbone.model.weights]
    assert len({v.path for v in again.model.weights}) == len(again.model.weights)
    assert again.stages == backbone.stages


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in applications.names() if n not in FAMILIES])
def test_all_others_build_and_mask(name):
    backbone = load(name)
    mask = masks.decide(masks.variables(backbone.model), backbone.stages, [Rule("*", True)])
    assert len(mask.entries) == len(backbone.model.weights)
    assert {entry.stage for entry in mask.entries} == {stage.name for stage in backbone.stages}
    assert sum(stage.name.startswith("block_") for stage in backbone.stages) >= 4
    keras.backend.clear_session()


def test_weights_of_a_file_with_and_without_its_top(mobilenet, tmp_path):
    whole = keras.applications.MobileNetV2(weights=None, input_shape=(75, 75, 3), classes=1000)
    random_statistics(whole)
    path = tmp_path / "mobilenet.weights.h5"
    whole.save_weights(path)
    backbone = load("MobileNetV2", weights=str(path))
    by_name = {v.path: v for v in whole.weights}
    for variable in backbone.model.weights:
        np.testing.assert_array_equal(variable.value, by_name[variable.path].value)
    assert backbone.fingerprint != mobilenet.fingerprint


def test_precision_reaches_the_layers():
    config = ModelConfig(backbone="keras:MobileNetV2", weights="none", image_size=75)
    backbone = backbones.load(config, "mixed_bfloat16")
    kernel = backbone.model.get_layer("Conv1")
    assert kernel.compute_dtype == "bfloat16" and kernel.variable_dtype == "float32"
    assert keras.config.dtype_policy().name == "float32"
    found = backbone.model.predict_on_batch({"image": np.zeros((1, 75, 75, 3), np.float32)})
    assert found["pooled"].dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "keras:MobilNetV2"}, "no 'MobilNetV2'.*MobileNetV2"),
        ({"weights": "nowhere.h5"}, "no such file: nowhere.h5"),
        ({"weights": __file__}, r"must be a \.weights\.h5 file"),
        ({"backbone": "keras:InceptionV3", "image_size": 32}, "image_size: 32 does not go"),
    ],
)
def test_mistakes(changes, message):
    config = {"backbone": "keras:MobileNetV2", "weights": "none", "image_size": 75, **changes}
    with pytest.raises(UserError, match=message):
        backbones.load(ModelConfig(**config))


def test_imagenet_weights_that_cannot_be_had(monkeypatch):
    def fails(*_, **__):
        raise Exception("URL fetch failure")

    monkeypatch.setattr("keras.src.applications.mobilenet_v2.file_utils.get_file", fails)
    with pytest.raises(
        UserError, match=r"ImageNet weights of MobileNetV2 cannot be had: URL.*none"
    ):
        load("MobileNetV2", weights="imagenet")


def test_weights_of_another_model_are_refused(tmp_path):
    keras.applications.MobileNet(
        weights=None, include_top=False, input_shape=(75, 75, 3)
    ).save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(UserError, match="does not fit MobileNetV2"):
        load("MobileNetV2", weights=str(tmp_path / "other.weights.h5"))
