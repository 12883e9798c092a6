"""keras.applications backbones: features equal Keras', and stages cover all variables."""

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

# One model of each family -> the module of its preprocessing, the number of its blocks.
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
# One scales pixels to [-1, 1], the other subtracts means.
QUICK = ("MobileNetV2", "VGG16")
CASES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES]


def load(name, size=75, **changes):
    return backbones.load(
        ModelConfig(backbone=f"keras:{name}", image_size=size, **{"weights": "none", **changes})
    )


def randomize_weights(model):
    """Change all variables from their initial values, as training does."""
    generator = np.random.default_rng(0)
    for variable in model.weights:
        value = np.asarray(variable.value)
        scale = np.abs(value).mean() + 0.1
        noise = generator.uniform(0.0, 0.2, value.shape)
        variable.assign(value + scale * noise)


@pytest.mark.parametrize("name", CASES)
def test_features_equal_keras_and_stages_cover_all_variables(name):
    module, blocks = FAMILIES[name]
    backbone = load(name)
    randomize_weights(backbone.model)
    reference = keras.applications.__dict__[name](
        weights=None, include_top=False, input_shape=(75, 75, 3), pooling="avg"
    )
    counters = [v for layer in reference.layers for v in _counter_ids(layer)]
    expected_weights = [v for v in reference.weights if id(v) not in counters]
    assert len(expected_weights) == len(backbone.model.weights)
    for layer, source in _matching_layers(reference, backbone.model):
        for target, value in zip(layer, source, strict=True):
            target.assign(value)
    for layer in reference.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.weights:
            layer.finalize_state()
    x = np.random.default_rng(1).uniform(0, 255, (2, 75, 75, 3)).astype(np.float32)
    preprocess = importlib.import_module(f"keras.applications.{module}").preprocess_input
    actual = backbone.model.predict_on_batch({"image": x})
    expected = reference.predict_on_batch(preprocess(x.copy()))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual["pooled"] / scale, expected / scale, atol=2e-5)

    names = [stage.name for stage in backbone.stages]
    assert names == sorted(names, key=lambda n: {"stem": -1, "top": 999}.get(n) or _number(n))
    assert sum(n.startswith("block_") for n in names) == blocks
    mask = masks.decide(masks.variables(backbone.model), backbone.stages, [Rule("*", True)])
    assert {entry.stage for entry in mask.entries} == set(names)


def _number(name):
    return int(name.removeprefix("block_")) if "_" in name else 0


def _counter_ids(layer):
    """Return ids of the counters of Keras' Normalization, which inference does not read."""
    is_normalization = isinstance(layer, keras.layers.Normalization)
    return [id(v) for v in layer.weights[2:]] if is_normalization else []


def _matching_layers(reference, model):
    """Yield pairs (variables of Keras' layer, of tfft's layer), in the order of the layers."""
    reference_layers = [layer for layer in reference.layers if layer.weights]
    layers = [layer for layer in model.layers if layer.weights]
    for source, target in zip(reference_layers, layers, strict=True):
        yield [v for v in source.weights if id(v) not in _counter_ids(source)], target.weights


@pytest.fixture(scope="module")
def mobilenet():
    return load("MobileNetV2")


@pytest.mark.parametrize("name", ["MobileNetV2", pytest.param("Xception", marks=pytest.mark.slow)])
def test_rebuild_gives_the_same_paths_after_other_layers(mobilenet, name):
    backbone = mobilenet if name == "MobileNetV2" else load(name)
    keras.layers.Conv2D(1, 1)  # advances Keras' counters of layer names
    rebuilt = backbones.rebuild(dict(backbone.description))
    assert [v.path for v in rebuilt.model.weights] == [v.path for v in backbone.model.weights]
    assert len({v.path for v in rebuilt.model.weights}) == len(rebuilt.model.weights)
    assert rebuilt.stages == backbone.stages


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in applications.names() if n not in FAMILIES])
def test_all_other_models_build_and_mask(name):
    backbone = load(name)
    mask = masks.decide(masks.variables(backbone.model), backbone.stages, [Rule("*", True)])
    assert len(mask.entries) == len(backbone.model.weights)
    assert {entry.stage for entry in mask.entries} == {stage.name for stage in backbone.stages}
    assert sum(stage.name.startswith("block_") for stage in backbone.stages) >= 4
    keras.backend.clear_session()


def test_weights_load_from_a_file_with_a_classifier(mobilenet, tmp_path):
    full_model = keras.applications.MobileNetV2(weights=None, input_shape=(75, 75, 3), classes=1000)
    randomize_weights(full_model)
    path = tmp_path / "mobilenet.weights.h5"
    full_model.save_weights(path)
    backbone = load("MobileNetV2", weights=str(path))
    by_name = {v.path: v for v in full_model.weights}
    for variable in backbone.model.weights:
        np.testing.assert_array_equal(variable.value, by_name[variable.path].value)
    assert backbone.fingerprint != mobilenet.fingerprint


def test_precision_reaches_the_layers():
    config = ModelConfig(backbone="keras:MobileNetV2", weights="none", image_size=75)
    backbone = backbones.load(config, "mixed_bfloat16")
    kernel = backbone.model.get_layer("Conv1")
    assert kernel.compute_dtype == "bfloat16" and kernel.variable_dtype == "float32"
    assert keras.config.dtype_policy().name == "float32"
    features = backbone.model.predict_on_batch({"image": np.zeros((1, 75, 75, 3), np.float32)})
    assert features["pooled"].dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "keras:MobilNetV2"}, "no 'MobilNetV2'.*MobileNetV2"),
        ({"weights": "nowhere.h5"}, "no such file: nowhere.h5"),
        ({"weights": __file__}, r"must be a \.weights\.h5 file"),
        (
            {"backbone": "keras:InceptionV3", "image_size": 32},
            "image_size: 32 does not fit InceptionV3",
        ),
    ],
)
def test_invalid_config_is_refused(changes, message):
    config = {"backbone": "keras:MobileNetV2", "weights": "none", "image_size": 75, **changes}
    with pytest.raises(UserError, match=message):
        backbones.load(ModelConfig(**config))


def test_failed_download_is_an_actionable_error(monkeypatch):
    def fail(*_, **__):
        raise Exception("URL fetch failure")

    monkeypatch.setattr("keras.src.applications.mobilenet_v2.file_utils.get_file", fail)
    with pytest.raises(
        UserError, match=r"ImageNet weights of MobileNetV2 cannot be downloaded: URL.*none"
    ):
        load("MobileNetV2", weights="imagenet")


def test_weights_of_another_model_are_refused(tmp_path):
    keras.applications.MobileNet(
        weights=None, include_top=False, input_shape=(75, 75, 3)
    ).save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(UserError, match="does not fit MobileNetV2"):
        load("MobileNetV2", weights=str(tmp_path / "other.weights.h5"))
