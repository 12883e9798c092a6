"""Runs on images, from a folder of files to served predictions."""

import importlib.util
import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfft
from tests.conftest import ROOT
from tfft import backbones, train
from tfft.config import ModelConfig, parse
from tfft.export import ExportedModel
from tfft.model import assemble
from tfft.tasks import TASKS
from tfft.utils.errors import Interrupted, UserError

COLOURS = {"blue": (10, 20, 200), "green": (20, 180, 30), "red": (200, 10, 20)}
SIZE = 32
CHECKPOINTS = Path(__file__).parents[1] / "golden" / "vision"
# Changes to `raw`: a tiny network for tests that do not need keras.applications.
VIT = {
    "model": {"backbone": f"hf:{CHECKPOINTS / 'vit'}", "image_size": 24},
    "method": {"name": "lora", "targets": "query|value|up"},
    "train": {"epochs": 3, "batch_size": 16},
    "evaluate": {"bootstrap": 0, "baselines": False},
}
HEAD = {**VIT, "method": {"name": "head"}, "export": {"enabled": False}}


def write_folder(root, count, seed):
    """Write `count` noisy images of each colour to a folder per class."""
    generator = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        for index in range(count):
            path = root / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = generator.integers(-10, 50, (SIZE, SIZE + 8, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            path.write_bytes(tf.io.encode_png(pixels).numpy())


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    """A config on files: images, and the weights of a MobileNet."""
    root = tmp_path_factory.mktemp("images")
    write_folder(root / "train", 30, 0)
    write_folder(root / "test", 10, 1)
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNet(
        weights=None, include_top=False, input_shape=(SIZE, SIZE, 3)
    )
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # Statistics of one batch, so that activations of the random network differ.
            layer.momentum = 0.0
    colours = np.random.default_rng(0).uniform(-1, 1, (64, 1, 1, 3))
    model(np.broadcast_to(colours, (64, SIZE, SIZE, 3)).astype(np.float32), training=True)
    model.save_weights(root / "mobilenet.weights.h5")
    return {
        "data": {
            "train": f"{root / 'train'}/",
            "validation": {"fraction": 0.2},
            "test": {"source": "images", "path": str(root / "test")},
        },
        "model": {
            "backbone": "keras:MobileNet",
            "weights": str(root / "mobilenet.weights.h5"),
            "image_size": SIZE,
        },
        "task": {"name": "image_classification", "dropout": 0.0},
        "method": {"name": "top", "stages": 2},
        "augmentation": {"flip": "horizontal", "crop": {}, "brightness": 0.05},
        "optimizer": {"learning_rate": 1e-3, "warmup": "0%"},
        "train": {"epochs": 6, "batch_size": 16},
        "evaluate": {"bootstrap": 20},
        "export": {"verify_rows": 32},
    }


@pytest.fixture(scope="session")
def run(raw, tmp_path_factory):
    return tfft.train(raw, tmp_path_factory.mktemp("run") / "whole")


def test_run_learns_the_colours(run):
    assert run.metrics["test/accuracy"] > 0.6  # with features of a random network
    assert {"test/baseline/tiny/accuracy", "test/log_loss/low"} <= set(run.metrics)


def test_frozen_weights_and_statistics_are_unchanged(run, raw):
    from tfft import backbones

    pretrained = {
        variable.path: variable for variable in backbones.load(parse(raw).model).model.weights
    }
    trainable = {variable.path for variable in run.model.trainable_variables}
    frozen = [
        variable
        for variable in run.model.weights
        if variable.path in pretrained and variable.path not in trainable
    ]
    assert {variable.path for variable in frozen} > {
        "conv_pw_13_bn/moving_mean",
        "conv_dw_13_bn/moving_variance",
    }
    for variable in frozen:
        np.testing.assert_array_equal(variable.value, pretrained[variable.path].value)
    assert any(
        not np.array_equal(pretrained[path].value, variable.value)
        for path, variable in _weights_by_path(run)
        if path in trainable
    )
    assert (
        "top" not in trainable
        and "conv_pw_13/kernel" in trainable
        and "conv1/kernel" not in trainable
    )


def _weights_by_path(run):
    return [(v.path, v) for v in run.model.weights]


@pytest.mark.slow  # the contract of the tasks; tests/test_train.py resumes a run of texts
def test_resume_is_bit_identical(vit, raw, tmp_path):
    """With augmentation, whose draws continue at the interrupted step."""
    workdir = tmp_path / "resumed"
    workdir.mkdir()
    config = parse({**raw, **VIT}, changes={"export": {"enabled": False}})
    _stopped(config, workdir, "step 1 of 15")
    resumed = train.run(config, workdir)
    for (path, expected), (_, actual) in zip(
        _weights_by_path(vit), _weights_by_path(resumed), strict=True
    ):
        np.testing.assert_array_equal(expected.value, actual.value, err_msg=path)


def _stopped(config, workdir, position="step 1 of 30"):
    """Train up to the first check for the file STOP."""
    from tfft.training import callbacks, progress

    original = progress.History.on_train_batch_end

    def stop(self, *args, **kwargs):
        workdir.mkdir(exist_ok=True)
        (workdir / "STOP").touch()
        return original(self, *args, **kwargs)

    interval, callbacks.Interrupt.POLL_SECONDS = callbacks.Interrupt.POLL_SECONDS, 0.0
    progress.History.on_train_batch_end = stop
    try:
        with pytest.raises(Interrupted, match=f"interrupted at {position}"):
            train.run(config, workdir)
    finally:
        progress.History.on_train_batch_end = original
        callbacks.Interrupt.POLL_SECONDS = interval
        (workdir / "STOP").unlink(missing_ok=True)


def test_loaded_run_and_export_agree_on_paths_and_bytes(run, raw):
    folder = raw["data"]["test"]["path"]
    paths = [f"{folder}/{name}/3.png" for name in COLOURS]
    encoded = [Path(path).read_bytes() for path in paths]
    loaded = tfft.load(run.workdir)
    predictions = loaded.predict(paths)
    expected = run.logits(paths).argmax(1)
    assert [prediction["label"] for prediction in predictions] == [
        run.labels[class_id] for class_id in expected
    ]
    assert predictions == loaded.predict(encoded)
    exported_model = ExportedModel(run.workdir / "export")
    probabilities = exported_model.outputs([(image,) for image in encoded], 2)["probabilities"]
    expected_probabilities = [
        [prediction["probabilities"][name] for name in COLOURS] for prediction in predictions
    ]
    np.testing.assert_allclose(probabilities, expected_probabilities, atol=1e-5)
    np.testing.assert_array_equal(
        probabilities, exported_model.outputs([(path,) for path in paths], 2)["probabilities"]
    )
    with pytest.raises(UserError, match=r"^row 2: not an image of a known format"):
        exported_model.outputs([(encoded[0],), (b"nothing",)], 2)["probabilities"]


def test_quickstart_serves_an_export_folder(run, raw, capfd):
    """The export folder holds other files beside the versions."""
    spec = importlib.util.spec_from_file_location(
        "quickstart_image", ROOT / "examples" / "quickstart_image.py"
    )
    quickstart = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(quickstart)
    paths = [next((Path(raw["data"]["train"]) / name).glob("*.png")) for name in COLOURS]
    quickstart.serve_images(run.workdir / "export", paths)
    printed = re.findall(r"^  (\w+) \(\d\.\d{3}\)$", capfd.readouterr().out, re.MULTILINE)
    assert printed == [
        prediction["label"] for prediction in run.predict([str(path) for path in paths])
    ]


def test_export_signatures(run):
    model = tf.saved_model.load(str(run.workdir / "export" / "1"))
    assert set(model.signatures) == {"serving_default", "tensors", "serialized", "classify"}
    serving, tensors = model.signatures["serving_default"], model.signatures["tensors"]
    assert serving.structured_input_signature[1] == {
        "image": tf.TensorSpec([None], tf.string, "image")
    }
    image_spec = tensors.structured_input_signature[1]["image"]
    assert image_spec.dtype == tf.float32 and image_spec.shape.as_list() == [None, SIZE, SIZE, 3]
    for signature in (serving, tensors):
        outputs = signature.structured_outputs
        assert outputs["probabilities"].dtype == tf.float32
        assert outputs["label"].dtype == tf.string


def test_report_shows_images(run):
    page = (run.workdir / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 24
    assert "Training images" in page and "size of the training images" in page
    assert not re.findall(r'(?:src|href)="http', page)


def test_grad_cam_equals_its_definition():
    from tfft.report.images import grad_cam

    image = keras.Input([8, 8, 3], name="image")
    maps = keras.layers.Conv2D(4, 3, padding="same", name="conv")(image)
    vector = keras.layers.GlobalAveragePooling2D()(maps)
    model = keras.Model({"image": image}, keras.layers.Dense(3, name="logits")(vector))
    pixels = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    heat = grad_cam(model, pixels, np.array([2, 0]))
    feature_maps = np.asarray(model.get_layer("conv")(pixels))
    weights = np.asarray(model.get_layer("logits").kernel).T[[2, 0]] / 64
    expected = np.maximum((feature_maps * weights[:, None, None]).sum(-1), 0)
    expected /= expected.max((1, 2), keepdims=True)
    np.testing.assert_allclose(heat, expected, atol=1e-5)


def test_report_shows_wrong_images_with_grad_cam(run, raw):
    from tfft.report import build_page_images

    test = run.datasets.test
    description = {"label": "blue", "predicted": "red", "confidence": 0.9, "about": 2}
    worst = [{"row": test.raw_row(0), **description}]
    evaluation = type("Evaluation", (), {"worst": worst})
    from tfft.data import model_inputs

    rows = model_inputs.unaugmented_rows(run.datasets.train, run.inputs)
    page = build_page_images(run.model, run.inputs, run.datasets, rows, {"test": evaluation})
    assert "Grad-CAM" in page.worst["test"] and "blue, not red (0.90)" in page.worst["test"]


def test_cached_features_give_the_same_logits(raw, tmp_path):
    """Only the head is trained, without augmentation, so features are cached instead of images."""
    base = {**raw, **HEAD, "data": {**raw["data"], "validation": None}, "augmentation": {}}
    runs = {}
    for cache in (True, False):
        changes = {"train": {**HEAD["train"], "cache_features": cache, "cache_dtype": "float32"}}
        runs[cache] = tfft.train({**base, **changes}, tmp_path / str(cache))
    logits = [runs[cache].logits([runs[cache].datasets.test.raw_row(0)]) for cache in runs]
    np.testing.assert_allclose(*logits, atol=1e-4)


def test_feature_cache_with_augmentation_is_an_error(raw, tmp_path):
    with pytest.raises(UserError, match=r"train\.cache_features: augmentation changes the images"):
        tfft.train(
            {**raw, "method": {"name": "head"}}, tmp_path / "run", train={"cache_features": True}
        )


def test_augmented_variants_are_cached(raw, tmp_path):
    changes = {
        **HEAD,
        "augmentation": {"flip": "horizontal", "brightness": 0.2, "variants": 2},
        "evaluate": {"test_time_augmentation": "mirrored", "bootstrap": 0, "baselines": False},
    }
    cache = tmp_path / "cache"
    data = {**raw["data"], "cache_dir": str(cache)}
    run = tfft.train(
        {**raw, **changes, "data": data}, tmp_path / "run", train={"cache_features": True}
    )
    arrays = [np.load(path) for path in cache.glob("prefix/*/below_0.npy")]
    variants = [values for values in arrays if len(values) == len(run.datasets.train)]
    assert len(variants) == 2 and len(arrays) == 3
    assert (variants[0] != variants[1]).any(1).mean() > 0.9


def test_cached_variants_alternate_by_epoch():
    from tfft.data import batches
    from tfft.training import feature_cache

    class ConstantRows:
        uniform = True

        def __init__(self, value):
            self.value = value

        def arrays(self, _):
            return self.value

    rows = feature_cache.CyclingCache(
        [ConstantRows("a"), ConstantRows("b"), ConstantRows("c")], per_epoch=4
    )
    values = [rows.arrays(batches.Batch(np.arange(2), 8, draw)) for draw in range(0, 20, 2)]
    assert values == list("aabbccaabb")


def test_test_time_augmentation_averages_both_views(run):
    single = run.evaluate("test", test_time_augmentation="none")
    both = run.evaluate("test", test_time_augmentation="mirrored")
    assert both.metrics["log_loss"] != single.metrics["log_loss"]
    test = run.datasets.test
    pixels = run.inputs.batch([test.raw_row(index)[0] for index in range(len(test))])["image"]
    probabilities = [
        tf.nn.softmax(run.model.predict_on_batch({"image": view})).numpy()
        for view in (pixels, pixels[:, :, ::-1])
    ]
    true_probabilities = np.mean(probabilities, axis=0)[np.arange(len(test)), test.targets]
    np.testing.assert_allclose(
        both.metrics["log_loss"], -np.log(true_probabilities).mean(), rtol=1e-4
    )


def test_preview_and_modality_error(raw, minilm):
    text = train.preview(parse(raw))
    assert re.search(r"block_12 +10", text) and "with 16 images" in text
    config = parse({**raw, "model": {"backbone": f"hf:{minilm}"}})
    with pytest.raises(UserError, match=r"task\.name: image_classification reads images"):
        train.preview(config)


def test_random_backbone_weights_are_saved(raw, tmp_path):
    model = {"backbone": "keras:MobileNet", "weights": "none", "image_size": SIZE}
    data = {**raw["data"], "validation": None}
    changes = {**HEAD, "model": model, "data": data, "augmentation": {}}
    changes["train"] = {"epochs": 1, "batch_size": 16}
    run = tfft.train({**raw, **changes}, tmp_path / "run")
    description = json.loads((run.workdir / "best" / "model.json").read_text())
    assert description["trained"] is None
    path = run.datasets.test.raw_row(0)
    np.testing.assert_array_equal(tfft.load(run.workdir).logits([path]), run.logits([path]))


@pytest.fixture(scope="session")
def vit(raw, tmp_path_factory):
    """A run on a Hugging Face checkpoint of a vision transformer."""
    return tfft.train({**raw, **VIT}, tmp_path_factory.mktemp("vit") / "run")


def test_vision_transformer_with_lora_is_served_and_exported(vit, raw, tmp_path):
    assert vit.metrics["test/accuracy"] > 0.5
    paths = [str(p) for p in sorted(Path(raw["data"]["test"]["path"]).glob("*/*"))[::5]]
    expected = tf.nn.softmax(vit.logits(paths)).numpy()
    actual = ExportedModel(vit.workdir / "export").outputs([(p,) for p in paths], 4)[
        "probabilities"
    ]
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    vit.export_huggingface(tmp_path)
    settings = {"backbone": f"hf:{tmp_path}", "head": "checkpoint", "image_size": 24}
    backbone = backbones.load(ModelConfig(**settings))
    assert backbone.head.labels == tuple(COLOURS)
    assert backbone.image_spec == vit.inputs.image_spec
    task = TASKS["image_classification"]
    model = assemble(backbone, task, task.section(), backbone.head.labels)
    logits = np.asarray(model(vit.inputs.batch(paths)))
    np.testing.assert_allclose(logits, vit.logits(paths), atol=1e-5)


def test_attention_roll_out_equals_its_definition(vit):
    """Attention roll-out against its definition, computed from the weights."""
    from tfft.report.images import roll_out

    pixels = np.random.default_rng(0).uniform(0, 255, [2, 24, 24, 3]).astype(np.float32)
    heat = roll_out(vit.model, pixels)
    assert heat.shape == (2, 6, 6)
    assert heat.min() == 0 and heat.max() == 1
    x = keras.Model(vit.model.inputs, vit.model.get_layer("embeddings").output)(pixels)
    flow = np.eye(37)
    for name in ("block_0", "block_1"):
        block = vit.model.get_layer(name)
        y = block.attention_norm(x)
        q, k, _ = np.split(np.asarray(block.attention.qkv(y)), 3, axis=-1)
        q, k = (z.reshape(2, 37, 2, 8).transpose(0, 2, 1, 3) for z in (q, k))
        scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(8)
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        flow = (0.5 * weights.mean(1) + 0.5 * np.eye(37)) @ flow
        x = block(x)
    expected = flow[:, 0, 1:]
    expected = (expected - expected.min(1, keepdims=True)) / np.ptp(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(heat.reshape(2, -1), expected, atol=1e-4)
    assert roll_out(keras.Model(*[keras.Input([2])] * 2), pixels) is None


@pytest.mark.slow  # the others of this file train a MobileNet and a ViT
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("swin", {"name": "prefix", "length": 2}),
        ("dinov2", {"name": "ia3"}),
        ("convnext", {"name": "adapter", "width": 2}),
        ("resnet", {"name": "norm"}),
        ("mobilenet_v2", {"name": "top", "stages": 3}),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_methods_on_image_checkpoints(raw, tmp_path, name, method, precision):
    config = {
        **raw,
        "model": {"backbone": f"hf:{CHECKPOINTS / name}"},
        "method": method,
        "augmentation": {},
        "distribute": {"precision": precision},
        "train": {"epochs": 1, "batch_size": 16},
        "evaluate": {"bootstrap": 0, "baselines": False},
    }
    run = tfft.train(config, tmp_path / "run")
    assert run.metrics["test/log_loss"] < 2
    assert (run.workdir / "report.html").is_file()


def test_prompt_and_prefix_need_a_transformer(raw, tmp_path):
    config = {**raw, "model": {"backbone": f"hf:{CHECKPOINTS / 'vit'}"}, "augmentation": {}}
    with pytest.raises(UserError, match="prompt"):
        tfft.train({**config, "method": {"name": "prompt"}}, tmp_path / "run")
    with pytest.raises(UserError, match="prefix"):
        config["model"] = {"backbone": f"hf:{CHECKPOINTS / 'resnet'}"}
        tfft.train({**config, "method": {"name": "prefix"}}, tmp_path / "run")
