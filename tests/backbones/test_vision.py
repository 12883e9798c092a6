"""Checkpoints of pictures against what PyTorch's transformers makes of them (golden files)."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tfft import backbones
from tfft.backbones.families import FAMILIES, processor
from tfft.config import ModelConfig, TaskConfig
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


def expected(name):
    return np.load(GOLDEN / name / "expected.npz")


def difference(found, wanted):
    assert found.shape == wanted.shape
    return np.abs(np.asarray(found) - wanted).max()


@pytest.mark.parametrize("name", CASES)
def test_features_equal_the_original(name):
    values = expected(name)
    size = values["image"].shape[1]
    backbone = load(name)
    assert backbone.image_spec.size == (size, size)
    found = backbone.model({"image": values["image"]})
    assert {key: value.shape[-1] for key, value in found.items()} == dict(backbone.features)
    last = values["last"]
    if "sequence" in found:
        assert difference(found["sequence"], last) < BOUND
        patches = last[:, 2 if name.startswith("deit") else 1 :]
        assert difference(found["map"], patches.reshape(found["map"].shape)) < BOUND
    else:
        assert difference(found["map"], last.reshape(found["map"].shape)) < BOUND
        assert difference(found["pooled"], values["pooled"]) < BOUND


@pytest.mark.parametrize("name", CASES)
def test_stored_head_labels_and_stages(name):
    values, backbone = expected(name), load(name, head="checkpoint")
    assert backbone.head.labels == ("zero", "one", "two")
    model = assemble(backbone, TASK, TaskConfig(name=TASK.name), backbone.head.labels)
    assert difference(model({"image": values["image"]}), values["logits"]) < BOUND
    for variable in backbone.model.weights:
        found = [s.name for s in backbone.stages if re.match(s.pattern, variable.path)]
        assert len(found) == 1, variable.path
    assert backbone.stages[1].name == "block_0"


@pytest.mark.parametrize("name", CASES)
def test_saved_and_loaded_again_is_the_same_file(name, tmp_path):
    backbone = load(name, head="checkpoint")
    model = assemble(backbone, TASK, TaskConfig(name=TASK.name), backbone.head.labels)
    backbones.huggingface.save(model, backbone, backbone.head.labels, tmp_path)
    before = load_file(GOLDEN / name / "model.safetensors")
    after = load_file(tmp_path / "model.safetensors")
    assert {n for n in before if "mask_token" not in n and "num_batches" not in n} == set(after)
    if name == "deit_teacher":  # of two biases only the mean counts: both are written as it
        biases = [f"{which}_classifier.bias" for which in ("cls", "distillation")]
        mean = sum(before.pop(b) for b in biases) / 2
        for b in biases:
            np.testing.assert_allclose(after.pop(b), mean, rtol=1e-6)
    for tensor, value in after.items():
        np.testing.assert_allclose(value, before[tensor], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["vit", "dinov2", "deit_teacher", "swin", "convnext", "resnet"])
def test_rebuilt_is_the_same(name):
    values, backbone = expected(name), load(name)
    description = json.loads(json.dumps(backbone.description))
    again = backbones.rebuild(description)
    assert [v.path for v in again.model.weights] == [v.path for v in backbone.model.weights]
    again.model.set_weights(backbone.model.get_weights())
    assert again.image_spec == backbone.image_spec
    pair = [np.asarray(b.model({"image": values["image"]})["pooled"]) for b in (backbone, again)]
    np.testing.assert_array_equal(*pair)


def test_another_size_than_the_file_names():
    """The positions of a ViT are interpolated, as transformers does when it is told to."""
    values = expected("vit_larger")
    folder = GOLDEN / "vit_larger"
    assert json.loads((folder / "config.json").read_text())["image_size"] == 16
    found = load("vit_larger", image_size=24).model({"image": values["image"]})
    assert difference(found["sequence"], values["last"]) < BOUND


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_dropout_in_training_alone(name):
    backbone = load(name, dropout=0.5)
    image = expected(name)["image"]
    still = [np.asarray(backbone.model({"image": image})["pooled"]) for _ in range(2)]
    np.testing.assert_array_equal(*still)
    moved = np.asarray(backbone.model({"image": image}, training=True)["pooled"])
    assert np.abs(moved - still[0]).max() > 1e-3


@pytest.mark.parametrize("name", ["convnext", "resnet", "mobilenet_v2"])
def test_what_has_no_dropout_says_so(name):
    with pytest.raises(UserError, match="has no dropout"):
        load(name, dropout=0.1)
    with pytest.raises(UserError, match="need one another"):
        load(name, surgery={"drop": ["block_0"]})


def test_blocks_of_a_vit_can_be_left_out():
    backbone = load("vit", surgery={"drop": ["block_0"]})
    assert [s.name for s in backbone.stages] == ["stem", "block_1", "top"]
    with pytest.raises(UserError, match=r"no block 'block_7'"):
        load("vit", surgery={"drop": ["block_7"]})


def test_depth_drop_leaves_out_whole_rows_at_its_rate():
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
def test_pictures_are_shown_as_transformers_shows_them(name):
    """Within one level of 255: Pillow rounds between down and across, TensorFlow after both."""
    folder = GOLDEN / "processors" / name
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    image_spec, scaling = processor.read(settings, FAMILIES["vit"].image_defaults, (224, 224))
    inputs = ImageInputs(image_spec)
    values = np.load(folder / "expected.npz")
    step = 8 if name == "convnext_large" else 1
    for key in values.files:
        pixels = inputs.batch([str(GOLDEN / "processors" / f"{key}.png")])["image"][0]
        wanted = values[key] * scaling["deviation"] + scaling["mean"]
        off = np.abs(pixels[::step, ::step] - wanted / scaling["scale"])
        assert off.shape == wanted.shape
        assert off.max() < 1.01, (key, off.max())


@pytest.mark.parametrize(
    ("settings", "image_spec"),
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
def test_older_forms_of_the_file(settings, image_spec):
    found, _ = processor.read(settings, FAMILIES["vit"].image_defaults, (32, 32))
    assert (found.size, found.resize, found.interpolation, found.crop_fraction) == image_spec


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
def test_what_the_file_cannot_ask_for(settings, words):
    with pytest.raises(UserError, match=words):
        processor.read(settings, FAMILIES["vit"].image_defaults, (32, 32))


def test_no_file_means_the_habits_of_the_family(tmp_path):
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
        ("swin", "num_heads", [2], "must be of one length"),
        ("convnext", "depths", [1], "must be of one length"),
        ("vit", "patch_size", [4, 4, 4], "must be one number or two"),
        ("vit", "patch_size", 64, "holds no patch"),
    ],
)
def test_a_config_that_cannot_be_built_is_a_line(name, key, value, words, tmp_path):
    for path in (GOLDEN / name).iterdir():
        shutil.copy(path, tmp_path / path.name)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, key: value}))
    with pytest.raises(UserError, match=words):
        backbones.load(ModelConfig(backbone=f"hf:{tmp_path}"))


def test_a_checkpoint_of_texts_has_no_image_size():
    folder = GOLDEN.parent / "encoders" / "bert"
    with pytest.raises(UserError, match="reads text"):
        backbones.load(ModelConfig(backbone=f"hf:{folder}", image_size=32))
