"""SavedModels in TF2's reusable format: equal features, masked training, export."""

import hashlib
import http.server
import io
import re
import tarfile
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfft
from tests.tasks.test_image_runs import SIZE, write_folder
from tfft import backbones
from tfft.config import ModelConfig, parse
from tfft.export import ExportedModel
from tfft.preprocess import ImageInputs
from tfft.spec import Feature
from tfft.utils import pretrained
from tfft.utils.errors import UserError


class Reusable(tf.__internal__.tracking.AutoTrackable):
    """A Keras model in TF2's reusable format, as on tfhub.dev."""

    def __init__(self, model, decay=0.0):
        super().__init__()
        self._model = model
        self.variables = [v.value for v in model.variables if v.dtype == "float32"]
        self.trainable_variables = [v.value for v in model.trainable_variables]
        kernels = [v for v in self.trainable_variables if len(v.shape) > 1]
        self.regularization_losses = (
            [tf.function(lambda: decay * tf.add_n([tf.nn.l2_loss(k) for k in kernels]), [])]
            if decay
            else []
        )

    @tf.function
    def __call__(self, x, training=False):
        return self._model(x, training=training)


def small_model(pooling="avg"):
    """Two blocks with BatchNorm, named as MobileNet names them."""
    keras.utils.set_random_seed(1)
    image = keras.Input([SIZE, SIZE, 3])
    x = image
    for name, width in (("block_1", 8), ("block_2", 16)):
        x = keras.layers.Conv2D(width, 3, 2, use_bias=False, name=f"{name}_conv")(x)
        x = keras.layers.BatchNormalization(name=f"{name}_BN")(x)
        x = keras.layers.ReLU()(x)
    if pooling == "avg":
        x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, x)
    model(np.random.default_rng(0).uniform(0, 1, (64, SIZE, SIZE, 3)), training=True)
    return model


def save(model, folder, size=(SIZE, SIZE, 3), **options):
    module = Reusable(model, **options)
    spec = tf.TensorSpec([None, *size], tf.float32)
    for training in (True, False):
        module.__call__.get_concrete_function(spec, training=training)
    tf.saved_model.save(module, str(folder))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(small_model(), tmp_path_factory.mktemp("hub") / "saved")


def load(path, **changes):
    return backbones.load(ModelConfig(backbone=f"hub:{path}", **changes))


PIXELS = np.random.default_rng(3).uniform(0, 255, (4, SIZE, SIZE, 3)).astype(np.float32)


@pytest.mark.parametrize("pooling", ["avg", None])
def test_features_equal_the_original(tmp_path, pooling):
    model = small_model(pooling)
    backbone = load(save(model, tmp_path / "saved"))
    actual = backbone.model.predict_on_batch({"image": PIXELS})
    expected = model.predict_on_batch(PIXELS / 255)
    if pooling is None:
        np.testing.assert_allclose(actual["map"], expected, atol=1e-6)
        expected = expected.mean((1, 2))
    np.testing.assert_allclose(actual["pooled"], expected, atol=1e-6)
    assert backbone.image_spec.size == (SIZE, SIZE)


def test_variables_are_shared_under_original_names_in_stages(folder):
    backbone = load(folder)
    paths = [v.path for v in backbone.model.weights]
    assert paths[0] == "hub/block_1_conv/kernel" and "hub/block_2_BN/moving_mean" in paths
    assert [s.name for s in backbone.stages] == ["block_0", "block_1"]
    custom = load(folder, stages=["conv", "BN"])
    assert "block_2_conv/kernel" in custom.stages[0].pattern.replace("\\", "")
    layer = backbone.model.get_layer("hub")
    assert {id(v.value) for v in layer.weights} == {id(v) for v in layer.saved.variables}


def test_scalings(folder):
    model = small_model()
    for scaling, pixels in (("tf", PIXELS / 127.5 - 1), ("none", PIXELS)):
        actual = load(folder, scaling=scaling).model.predict_on_batch({"image": PIXELS})
        expected = model.predict_on_batch(pixels)
        np.testing.assert_allclose(actual["pooled"], expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def raw(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    write_folder(root, 20, 0)
    return {
        "data": {"train": f"{root}/", "validation": {"fraction": 0.2}},
        "model": {"backbone": f"hub:{folder}"},
        "task": {"name": "image_classification", "dropout": 0.0},
        "optimizer": {"learning_rate": 1e-2, "warmup": "0%"},
        "train": {"epochs": 3, "batch_size": 16},
        "evaluate": {"bootstrap": 0, "baselines": False},
        "export": {"verify_rows": 32},
    }


def values(model):
    return {v.path: np.array(v.value) for v in model.weights}


TOP = {"name": "top", "stages": 1}


@pytest.fixture(scope="module")
def top(raw, tmp_path_factory):
    return tfft.train({**raw, "method": TOP}, tmp_path_factory.mktemp("hub") / "run")


# test_hub_text.py has it in the quick tests.
@pytest.mark.slow
@pytest.mark.parametrize("method", [{"name": "full"}, TOP])
def test_training_loading_and_export_agree(raw, folder, tmp_path, method, request):
    if method == TOP:
        run = request.getfixturevalue("top")
    else:
        run = tfft.train({**raw, "method": method}, tmp_path / "run")
    initial, trained = values(load(folder).model), values(run.model)
    changed = {path for path in initial if not np.array_equal(initial[path], trained[path])}
    assert not [path for path in changed if "moving" in path]  # BatchNorm statistics stay fixed
    expected = [p for p in initial if "moving" not in p]
    if method["name"] == "top":
        expected = [p for p in expected if "block_2" in p]
    assert changed == set(expected)
    assert run.metrics["validation/accuracy"] > 0.5
    row = run.datasets.train.raw_row(0)
    loaded = tfft.load(run.workdir)
    np.testing.assert_array_equal(loaded.logits([row]), run.logits([row]))
    served = ExportedModel(run.workdir / "export").outputs([row], 1)["probabilities"]
    probabilities = run.predict([row])[0]["probabilities"]
    np.testing.assert_allclose(served[0], [probabilities[n] for n in run.labels], atol=1e-5)


def test_resume_is_bit_identical(top, raw, tmp_path):
    from tests.tasks.test_image_runs import _stopped

    changes = {"method": TOP, "export": {"enabled": False}}
    _stopped(parse({**raw, **changes}), tmp_path / "resumed", "step 1 of 9")
    resumed = tfft.train({**raw, **changes}, tmp_path / "resumed")
    for path, value in values(top.model).items():
        np.testing.assert_array_equal(values(resumed.model)[path], value, err_msg=path)


def test_statistics_train_on_request_but_cannot_be_adapted(raw, folder, tmp_path):
    changes = {"export": {"enabled": False}, "train": {**raw["train"], "batch_norm": "train"}}
    run = tfft.train({**raw, **changes}, tmp_path / "run")
    initial, trained = values(load(folder).model), values(run.model)
    assert all(not np.array_equal(initial[p], trained[p]) for p in initial if "moving" in p)
    with pytest.raises(UserError, match=r"train\.batch_norm: adapt needs BatchNorm layers"):
        tfft.train({**raw, **changes}, tmp_path / "adapt", train={"batch_norm": "adapt"})


@pytest.mark.slow
def test_bfloat16_and_two_replicas(raw, tmp_path):
    changes = {"export": {"enabled": False}, "distribute": {"precision": "mixed_bfloat16"}}
    assert tfft.train({**raw, **changes}, tmp_path / "bf").metrics["validation/accuracy"] > 0.6
    weights = {}
    for name in ("one_device", "mirrored"):
        devices = ["CPU:0", "CPU:1"][: 1 + (name == "mirrored")]
        settings = {"strategy": name, "devices": devices}
        run = tfft.train(
            {**raw, "export": {"enabled": False}, "distribute": settings}, tmp_path / name
        )
        weights[name] = values(run.model)
    for path, value in weights["one_device"].items():
        np.testing.assert_allclose(weights["mirrored"][path], value, atol=1e-4, err_msg=path)


@pytest.fixture(scope="module")
def real(real_data, tmp_path_factory):
    """Return ImageNet's MobileNetV2 for 96 pixels: weights file, SavedModel and image folder."""
    weights = real_data.parent / "weights" / "mobilenet_v2_1.0_224_imagenet_notop.weights.h5"
    if not weights.is_file():
        pytest.skip(f"no weights at {weights}")
    size = (96, 96, 3)
    model = keras.applications.MobileNetV2(
        weights=str(weights), include_top=False, input_shape=size, pooling="avg"
    )
    folder = tmp_path_factory.mktemp("hub") / "mobilenet"
    return weights, save(model, folder, size=size), real_data / "cifar10_images"


@pytest.mark.slow
def test_features_of_a_real_network_equal_keras_applications(real):
    weights, folder, images = real
    config = ModelConfig(backbone="keras:MobileNetV2", weights=str(weights), image_size=96)
    reference, backbone = backbones.load(config), load(folder, scaling="tf")
    files = sorted((images / "test").glob("*/*.jpg"))[::50]
    pixels = ImageInputs(reference.image_spec).batch([str(f) for f in files])
    actual, expected = (b.model.predict_on_batch(pixels)["pooled"] for b in (backbone, reference))
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert len(backbone.stages) >= 17  # its blocks, the lowest two split further by their names


@pytest.mark.slow
def test_a_real_network_is_masked_resumed_and_served(real, tmp_path):
    from tests.tasks.test_image_runs import _stopped

    _, folder, images = real
    for name in ("cat", "ship"):
        (tmp_path / "rows" / name).mkdir(parents=True)
        for file in sorted((images / "train" / name).glob("*.jpg"))[:60]:
            (tmp_path / "rows" / name / file.name).write_bytes(file.read_bytes())
    raw = {
        "data": {"train": f"{tmp_path / 'rows'}/", "validation": {"fraction": 0.2}},
        "model": {"backbone": f"hub:{folder}"},
        "task": {"name": "image_classification"},
        "method": {"name": "top", "stages": 2},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"epochs": 2, "batch_size": 16},
        "evaluate": {"bootstrap": 0, "baselines": False},
        "export": {"verify_rows": 32},
    }
    run = tfft.train(raw, tmp_path / "run")
    initial, trained = values(load(folder).model), values(run.model)
    changed = {path for path in initial if not np.array_equal(initial[path], trained[path])}
    stages = list(run.backbone.stages)
    last_block = max(i for i, s in enumerate(stages) if s.name.startswith("block_"))
    below, top = stages[: last_block - 1], stages[last_block - 1 :]
    changed_in_top = [p for p in changed if any(re.match(s.pattern, p) for s in top)]
    assert changed_in_top and not [p for p in changed if any(re.match(s.pattern, p) for s in below)]
    assert not [path for path in changed if "moving" in path]
    _stopped(parse(raw), tmp_path / "resumed", "step 1 of 12")
    resumed = tfft.train(raw, tmp_path / "resumed")
    for path, value in trained.items():
        np.testing.assert_array_equal(values(resumed.model)[path], value, err_msg=path)
    row = run.datasets.train.raw_row(0)
    served = ExportedModel(run.workdir / "export").outputs([row], 1)["probabilities"]
    probabilities = run.predict([row])[0]["probabilities"]
    np.testing.assert_allclose(served[0], [probabilities[n] for n in run.labels], atol=1e-5)


def test_regularization_of_the_saved_model_is_part_of_the_loss(tmp_path):
    model = small_model()
    path = save(model, tmp_path / "saved", decay=0.1)
    layer = load(path).model.get_layer("hub")
    layer(PIXELS, training=True)
    kernels = [v for v in layer.weights if len(v.shape) > 1]
    expected = 0.1 * sum(0.5 * np.square(np.asarray(v.value)).sum() for v in kernels)
    np.testing.assert_allclose(float(layer.losses[0]), expected, rtol=1e-5)


class Archive(http.server.BaseHTTPRequestHandler):
    body, requests = b"", []

    def do_GET(self):
        self.requests.append(self.path)
        self.send_response(200 if self.path.startswith("/model") else 404)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_):
        pass


def test_a_handle_is_downloaded_once(folder, tmp_path, monkeypatch):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(folder, arcname=".")
    Archive.body = buffer.getvalue()
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path))
    with http.server.HTTPServer(("127.0.0.1", 0), Archive) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        handle = f"http://127.0.0.1:{server.server_port}/model/1"
        assert load(handle).features == load(handle).features == {"pooled": Feature(16, "BD")}
        assert Archive.requests == ["/model/1?tf-hub-format=compressed"]
        name = hashlib.sha1(handle.encode()).hexdigest()
        assert (tmp_path / name / "saved_model.pb").is_file()
        with pytest.raises(UserError, match="cannot be downloaded: HTTP Error 404"):
            load(f"http://127.0.0.1:{server.server_port}/other")
        pretrained._download_archive(handle, tmp_path / name)  # as a concurrent process does
        (tmp_path / name / "saved_model.pb").unlink()
        assert load(handle).features == {"pooled": Feature(16, "BD")}
        server.shutdown()
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


def test_invalid_saved_models_and_config_are_refused(tmp_path, folder):
    with pytest.raises(UserError, match="no such folder: nowhere"):
        load("nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no SavedModel"):
        load(tmp_path / "empty")

    class Bad(Reusable):
        @tf.function
        def __call__(self, x, training=False):
            tf.io.write_file("/tmp/never-written", tf.constant("x"))
            return self._model(x, training=training)

    module = Bad(small_model())
    module.__call__.get_concrete_function(tf.TensorSpec([None, SIZE, SIZE, 3], tf.float32))
    tf.saved_model.save(module, str(tmp_path / "bad"))
    with pytest.raises(UserError, match="holds the operation WriteFile, which tfft never runs"):
        load(tmp_path / "bad")
    small_model().export(tmp_path / "signatures", verbose=False)
    with pytest.raises(UserError, match=r"not in TF2's reusable format|does not take images"):
        load(tmp_path / "signatures")
    with pytest.raises(UserError, match=r"does not take images of 64 x 64"):
        load(folder, image_size=64)
    with pytest.raises(UserError, match=r"model\.stages: 'convv' matches no variable"):
        load(folder, stages=["convv", "BN"])
    with pytest.raises(UserError, match=r"no pattern matches 'block_1_BN/gamma'"):
        load(folder, stages=["conv"])
