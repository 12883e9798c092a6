"""Image checkpoints against PyTorch's transformers (golden files)."""

import functools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tfft import backbones
from tfft.backbones.families import FAMILIES, processor
from tfft.config import ModelConfig
from tfft.model import assemble
from tfft.preprocess import ImageInputs
from tfft.tasks import TASKS
from tfft.utils.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "vision"
CASES = sorted(p.parent.name for p in GOLDEN.glob("*/model.safetensors"))
BOUND = 1e-4
TASK = TASKS["image_classification"]


def load(name, **settings):
    return backbones.load(ModelConfig(backbone=f"hf:{GOLDEN / name}", **settings))


@pytest.fixture(scope="module")
def loaded():
    """A function that loads a checkpoint once; the tests only read what it returns."""
    return functools.cache(load)


@pytest.fixture(scope="module")
def classifier():
    """A function of a checkpoint with a head: its backbone and its model, which tests only read."""

    @functools.cache
    def classifier(name):
        backbone = load(name, head="checkpoint")
        return backbone, assemble(backbone, TASK, TASK.section(), backbone.head.labels)

    return classifier


def expected(name):
    return np.load(GOLDEN / name / "expected.npz")


def difference(actual, reference):
    assert actual.shape == reference.shape
    return np.abs(np.asarray(actual) - reference).max()


@pytest.mark.parametrize("name", CASES)
def test_features_equal_the_original(name, loaded):
    values = expected(name)
    size = values["image"].shape[1]
    backbone = loaded(name)
    assert backbone.image_spec.size == (size, size)
    actual = backbone.model({"image": values["image"]})
    features = backbone.features
    assert {key: value.shape[-1] for key, value in actual.items()} == {
        name: feature.width for name, feature in features.items()
    }
    assert (features["pooled"].axes, features["map"].axes) == ("BD", "BhwD")
    places = zip(backbone.image_spec.size, features["map"].stride, strict=True)
    assert [size / stride for size, stride in places] == list(actual["map"].shape[1:3])
    last_hidden = values["last"]
    if "sequence" in actual:
        assert difference(actual["sequence"], last_hidden) < BOUND
        patches = last_hidden[:, 2 if name.startswith("deit") else 1 :]
        assert difference(actual["map"], patches.reshape(actual["map"].shape)) < BOUND
    else:
        assert difference(actual["map"], last_hidden.reshape(actual["map"].shape)) < BOUND
        assert difference(actual["pooled"], values["pooled"]) < BOUND


@pytest.mark.parametrize("name", CASES)
def test_stored_head_gives_the_original_logits_and_stages_cover_all(name, classifier):
    values, (backbone, model) = expected(name), classifier(name)
    assert backbone.head.labels == ("zero", "one", "two")
    assert difference(model({"image": values["image"]}), values["logits"]) < BOUND
    for variable in backbone.model.weights:
        matches = [s.name for s in backbone.stages if re.match(s.pattern, variable.path)]
        assert len(matches) == 1, variable.path
    assert backbone.stages[1].name == "block_0"


@pytest.mark.parametrize("name", CASES)
def test_saved_checkpoint_equals_the_loaded_one(name, classifier, tmp_path):
    backbone, model = classifier(name)
    backbones.huggingface.save(model, backbone, backbone.head.labels, tmp_path)
    original = load_file(GOLDEN / name / "model.safetensors")
    saved = load_file(tmp_path / "model.safetensors")
    assert {n for n in original if "mask_token" not in n and "num_batches" not in n} == set(saved)
    if name == "deit_teacher":  # only the mean of two biases matters, and both are saved as it
        biases = [f"{token}_classifier.bias" for token in ("cls", "distillation")]
        mean = sum(original.pop(bias) for bias in biases) / 2
        for bias in biases:
            np.testing.assert_allclose(saved.pop(bias), mean, rtol=1e-6)
    for tensor, value in saved.items():
        np.testing.assert_allclose(value, original[tensor], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["vit", "dinov2", "deit_teacher", "swin", "convnext", "resnet"])
def test_rebuild_is_identical(name, loaded):
    values, backbone = expected(name), loaded(name)
    description = json.loads(json.dumps(backbone.description))
    rebuilt = backbones.rebuild(description)
    assert [v.path for v in rebuilt.model.weights] == [v.path for v in backbone.model.weights]
    rebuilt.model.set_weights(backbone.model.get_weights())
    assert rebuilt.image_spec == backbone.image_spec
    pair = [np.asarray(b.model({"image": values["image"]})["pooled"]) for b in (backbone, rebuilt)]
    np.testing.assert_array_equal(*pair)


def test_positions_are_interpolated_for_another_size():
    """The reference is transformers with `interpolate_pos_encoding`."""
    values = expected("vit_larger")
    folder = GOLDEN / "vit_larger"
    assert json.loads((folder / "config.json").read_text())["image_size"] == 16
    actual = load("vit_larger", image_size=24).model({"image": values["image"]})
    assert difference(actual["sequence"], values["last"]) < BOUND


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_dropout_applies_only_in_training(name):
    backbone = load(name, dropout=0.5)
    image = expected(name)["image"]
    inference = [np.asarray(backbone.model({"image": image})["pooled"]) for _ in range(2)]
    np.testing.assert_array_equal(*inference)
    training = np.asarray(backbone.model({"image": image}, training=True)["pooled"])
    assert np.abs(training - inference[0]).max() > 1e-3


@pytest.mark.parametrize("name", ["convnext", "resnet", "mobilenet_v2"])
def test_dropout_and_dropped_blocks_are_refused_for_convolutions(name):
    with pytest.raises(UserError, match="has no dropout"):
        load(name, dropout=0.1)
    with pytest.raises(UserError, match="need one another"):
        load(name, surgery={"drop": ["block_0"]})


def test_blocks_of_a_vit_can_be_dropped():
    backbone = load("vit", surgery={"drop": ["block_0"]})
    assert [s.name for s in backbone.stages] == ["stem", "block_1", "top"]
    with pytest.raises(UserError, match=r"no block 'block_7'"):
        load("vit", surgery={"drop": ["block_7"]})


def test_drop_path_drops_entire_rows_at_its_rate():
    from tfft.backbones.families.layers import DropPath

    layer = DropPath(0.25, seed=1)
    x = np.ones([4000, 3, 2], np.float32)
    y = np.asarray(layer(x, training=True))
    rows = y.reshape(4000, -1)
    assert ((rows == 0).all(1) | np.isclose(rows, 4 / 3).all(1)).all()
    assert abs((rows[:, 0] == 0).mean() - 0.25) < 0.03
    np.testing.assert_array_equal(np.asarray(layer(x)), x)


@pytest.mark.parametrize(
    "name", sorted(p.parent.name for p in (GOLDEN / "processors").glob("*/expected.npz"))
)
def test_preprocessing_equals_transformers(name):
    """Pixels agree within one level of 255: Pillow rounds after each axis, TensorFlow once."""
    folder = GOLDEN / "processors" / name
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    image_spec, scaling = processor.read(settings, FAMILIES["vit"].image_defaults, (224, 224))
    inputs = ImageInputs(image_spec)
    values = np.load(folder / "expected.npz")
    step = 8 if name == "convnext_large" else 1
    for key in values.files:
        pixels = inputs.batch([str(GOLDEN / "processors" / f"{key}.png")])["image"][0]
        reference = values[key] * scaling["deviation"] + scaling["mean"]
        error = np.abs(pixels[::step, ::step] - reference / scaling["scale"])
        assert error.shape == reference.shape
        assert error.max() < 1.01, (key, error.max())


@pytest.mark.parametrize(
    ("settings", "expected_spec"),
    [
        ({"size": 224, "resample": 2}, ((224, 224), "stretch", "bilinear", 1.0)),
        (
            {"size": 256, "crop_size": 224, "do_center_crop": True, "resample": 3},
            ((224, 224), "stretch", "bicubic", 0.875),
        ),
        (
            {"size": 224, "crop_pct": None, "feature_extractor_type": "ConvNextFeatureExtractor"},
            ((224, 224), "crop", "bilinear", 0.875),
        ),
        (
            {"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True},
            ((224, 224), "crop", "bilinear", 0.875),
        ),
    ],
)
def test_older_processor_files_are_read(settings, expected_spec):
    actual, _ = processor.read(settings, FAMILIES["vit"].image_defaults, (32, 32))
    assert (actual.size, actual.resize, actual.interpolation, actual.crop_fraction) == expected_spec


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"resample": 1}, "resample must be 0, 2 or 3"),
        ({"do_resize": False}, "do_resize must be true"),
        ({"size": {"shortest_edge": 256}}, "do_center_crop must be true"),
        ({"size": "large"}, "size must be a height and a width"),
        ({"image_mean": [0.5]}, "image_mean must be three numbers"),
    ],
)
def test_unsupported_preprocessing_is_refused(settings, words):
    with pytest.raises(UserError, match=words):
        processor.read(settings, FAMILIES["vit"].image_defaults, (32, 32))


def test_missing_processor_file_uses_the_family_defaults(tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / "convnext" / name, tmp_path / name)
    backbone = backbones.load(ModelConfig(backbone=f"hf:{tmp_path}"))
    assert (backbone.image_spec.resize, backbone.image_spec.crop_fraction) == ("crop", 0.875)
    assert backbone.description["scaling"]["mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize(
    ("name", "key", "value", "words"),
    [
        ("vit", "num_channels", 1, "num_channels=1 is not supported"),
        ("vit", "hidden_size", 18, "where config.json requires"),
        ("resnet", "layer_type", "wide", "layer_type='wide' is not supported"),
        ("resnet", "hidden_act", "gelu", "hidden_act='gelu' is not supported"),
        ("swin", "depths", "2", "depths must be a list of 1 to 8"),
        ("swin", "num_heads", [2], "must have the same length"),
        ("convnext", "depths", [1], "must have the same length"),
        ("vit", "patch_size", [4, 4, 4], "must be one number or two"),
        ("vit", "patch_size", 64, "holds no patch"),
    ],
)
def test_unsupported_config_is_refused(name, key, value, words, tmp_path):
    for path in (GOLDEN / name).iterdir():
        shutil.copy(path, tmp_path / path.name)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, key: value}))
    with pytest.raises(UserError, match=words):
        backbones.load(ModelConfig(backbone=f"hf:{tmp_path}"))


def test_image_size_is_refused_for_text():
    folder = GOLDEN.parent / "encoders" / "bert"
    with pytest.raises(UserError, match="reads text"):
        backbones.load(ModelConfig(backbone=f"hf:{folder}", image_size=32))
