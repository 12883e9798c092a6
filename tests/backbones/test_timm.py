"""timm checkpoints against timm (golden files), and KerasHub image presets."""

import json
import re
from pathlib import Path

import keras_hub
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.reference.seeded import tensor
from tfft import backbones
from tfft.config import ModelConfig
from tfft.utils.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "timm"
QUICK = ("mobilenetv3_small_050", "resnet18")
CASES = [
    pytest.param(path.stem, marks=() if path.stem in QUICK else pytest.mark.slow)
    for path in sorted(GOLDEN.glob("*.npz"))
]
NO_HEAD = ("mobilenetv3_small_050",)  # a dense layer precedes the classifier


def write_checkpoint(name, folder, **changes):
    values = np.load(GOLDEN / f"{name}.npz")
    shapes = json.loads(str(values["shapes"]))
    config = {**json.loads(str(values["config"])), **changes}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: tensor(k, tuple(s)) for k, s in shapes.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return values


def load(folder, provider="timm", **settings):
    return backbones.load(ModelConfig(backbone=f"{provider}:{folder}", **settings))


def check_stages(backbone):
    """Check that there are several stages and that each variable belongs to exactly one."""
    paths = [v.path for v in backbone.model.weights]
    assert len(backbone.stages) > 2
    for path in paths:
        assert sum(bool(re.match(s.pattern, path)) for s in backbone.stages) == 1, path
    assert "block_0" in [s.name for s in backbone.stages[:2]]


@pytest.mark.parametrize("name", CASES)
def test_features_and_logits_equal_timm(name, tmp_path):
    values = write_checkpoint(name, tmp_path)
    head = "new" if name in NO_HEAD else "checkpoint"
    backbone = load(tmp_path, image_size=65, head=head)
    actual = backbone.model.predict_on_batch({"image": values["image"].astype(np.float32)})
    assert np.abs(actual["pooled"] - values["pooled"]).max() < 1e-4
    assert np.abs(actual["map"][:, -1, -1] - values["corner"]).max() < 1e-4
    check_stages(backbone)
    if head == "checkpoint":
        kernel, bias = (backbone.head.weights[f"head/logits/{part}"] for part in ("kernel", "bias"))
        assert np.abs(actual["pooled"] @ kernel + bias - values["logits"]).max() < 1e-4
        assert len(backbone.head.labels) == 1000
    rebuilt = backbones.rebuild(json.loads(json.dumps(backbone.description)))
    assert [v.path for v in rebuilt.model.weights] == [v.path for v in backbone.model.weights]


def test_image_spec_and_labels_come_from_the_config(tmp_path):
    write_checkpoint("resnet18", tmp_path, label_names=[f"n {i}" for i in range(1000)])
    backbone = load(tmp_path, head="checkpoint")
    assert backbone.image_spec.size == (224, 224)
    assert (backbone.image_spec.resize, backbone.image_spec.interpolation) == ("crop", "bicubic")
    assert backbone.head.labels[2] == "n 2"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "swin_tiny"}, "swin_tiny cannot be loaded through KerasHub"),
        ({"architecture": "efficientnet_es"}, "builds a different network"),
        ({"architecture": None}, "names no timm architecture"),
        ({"architecture": "resnet50"}, "resnet50 cannot be loaded through KerasHub"),
        ({"pretrained_cfg": {"input_size": "large"}}, "pretrained_cfg"),
        ({"pretrained_cfg": {"mean": [0.5]}}, "mean must be three numbers"),
    ],
)
def test_invalid_checkpoints_are_refused(changes, words, tmp_path):
    write_checkpoint("resnet18", tmp_path, **changes)
    with pytest.raises(UserError, match=words):
        load(tmp_path)


def test_nonlinear_classifier_is_refused(tmp_path):
    write_checkpoint("mobilenetv3_small_050", tmp_path)
    with pytest.raises(UserError, match="has no classifier of one linear map"):
        load(tmp_path, head="checkpoint")


def small_resnet(shape=(None, None, 3)):
    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 2],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=shape,
    )


def test_kerashub_convolutional_preset(tmp_path):
    model, folder = small_resnet(), tmp_path / "preset"
    model.save_to_preset(str(folder))
    converter = keras_hub.layers.ResNetImageConverter(
        image_size=(48, 48), scale=[0.02, 0.03, 0.04], offset=[-1.0, -2.0, -3.0]
    )
    converter.save_to_preset(str(folder))
    backbone = load(folder, "kerashub")
    assert backbone.image_spec.size == (48, 48)
    check_stages(backbone)
    image = np.random.default_rng(0).uniform(0, 255, (2, 48, 48, 3)).astype(np.float32)
    expected = model.predict_on_batch(image * [0.02, 0.03, 0.04] + [-1.0, -2.0, -3.0])
    actual = backbone.model.predict_on_batch({"image": image})
    np.testing.assert_allclose(actual["map"], expected, rtol=1e-4, atol=1e-4)
    smaller = load(folder, "kerashub", image_size=32, scaling="tf")
    assert smaller.image_spec.size == (32, 32)
    rebuilt = backbones.rebuild(json.loads(json.dumps(backbone.description)))
    rebuilt.model.set_weights(backbone.model.get_weights())
    np.testing.assert_array_equal(
        rebuilt.model.predict_on_batch({"image": image})["pooled"], actual["pooled"]
    )


def test_kerashub_transformer_preset(tmp_path):
    model = keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3),
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
    )
    model.save_to_preset(str(tmp_path / "preset"))
    with pytest.raises(UserError, match="has no image converter; set its scaling"):
        load(tmp_path / "preset", "kerashub")
    backbone = load(tmp_path / "preset", "kerashub", scaling="tf")
    check_stages(backbone)
    image = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    expected = model.predict_on_batch(image / 127.5 - 1)
    actual = backbone.model.predict_on_batch({"image": image})
    np.testing.assert_allclose(actual["sequence"], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(actual["pooled"], expected[:, 0], rtol=1e-4, atol=1e-4)


def test_scaling_is_refused_for_a_text_preset(tmp_path):
    model = keras_hub.models.BertBackbone(
        vocabulary_size=50, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16
    )
    model.save_to_preset(str(tmp_path / "preset"))
    with pytest.raises(UserError, match="reads no images"):
        load(tmp_path / "preset", "kerashub", scaling="tf")
