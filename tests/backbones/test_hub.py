"""SavedModels in TF2's reusable format: the same features, trained under masks, exported."""

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
from tfft.utils import pretrained
from tfft.utils.errors import UserError


class Reusable(tf.__internal__.tracking.AutoTrackable):
    """A Keras model in the form that tfhub.dev asks for."""

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


def small(pooling="avg"):
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
    return save(small(), tmp_path_factory.mktemp("hub") / "saved")


def load(path, **changes):
    return backbones.load(ModelConfig(backbone=f"hub:{path}", **changes))


PIXELS = np.random.default_rng(3).uniform(0, 255, (4, SIZE, SIZE, 3)).astype(np.float32)


@pytest.mark.parametrize("pooling", ["avg", None])
def test_features_are_the_originals(tmp_path, pooling):
    model = small(pooling)
    backbone = load(save(model, tmp_path / "saved"))
    found = backbone.model.predict_on_batch({"image": PIXELS})
    expected = model.predict_on_batch(PIXELS / 255)
    if pooling is None:
        np.testing.assert_allclose(found["map"], expected, atol=1e-6)
        expected = expected.mean((1, 2))
    np.testing.assert_allclose(found["pooled"], expected, atol=1e-6)
    assert backbone.image_spec.size == (SIZE, SIZE)


def test_variables_are_shared_under_their_own_names_and_stages(folder):
    backbone = load(folder)
    paths = [v.path for v in backbone.model.weights]
    assert paths[0] == "hub/block_1_conv/kernel" and "hub/block_2_BN/moving_mean" in paths
    assert [s.name for s in backbone.stages] == ["block_0", "block_1"]
    given = load(folder, stages=["conv", "BN"])
    assert "block_2_conv/kernel" in given.stages[0].pattern.replace("\\", "")
    layer = backbone.model.get_layer("hub")
    assert {id(v.value) for v in layer.weights} == {id(v) for v in layer.saved.variables}


def test_scalings(folder):
    model = small()
    for scaling, expected in (("tf", PIXELS / 127.5 - 1), ("none", PIXELS)):
        found = load(folder, scaling=scaling).model.predict_on_batch({"image": PIXELS})
        want = model.predict_on_batch(expected)
        np.testing.assert_allclose(found["pooled"], want, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def raw(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
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


@pytest.mark.parametrize("method", [pytest.param({"name": "full"}, marks=pytest.mark.slow), TOP])
def test_trained_loaded_and_exported(raw, folder, tmp_path, method, request):
    if method == TOP:
        run = request.getfixturevalue("top")
    else:
        run = tfft.train({**raw, "method": method}, tmp_path / "run")
    before, after = values(load(folder).model), values(run.model)
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert not [path for path in moved if "moving" in path]  # statistics are kept
    wanted = [p for p in before if "moving" not in p]
    if method["name"] == "top":
        wanted = [p for p in wanted if "block_2" in p]
    assert moved == set(wanted)
    assert run.metrics["validation/accuracy"] > 0.5
    row = run.datasets.train.raw(0)
    again = tfft.load(run.workdir)
    np.testing.assert_array_equal(again.logits([row]), run.logits([row]))
    served = ExportedModel(run.workdir / "export").probabilities([row], 1)
    live = run.predict([row])[0]["probabilities"]
    np.testing.assert_allclose(served[0], [live[n] for n in run.labels], atol=1e-5)


def test_resumed_to_the_bit(top, raw, tmp_path):
    from tests.tasks.test_image_runs import _stopped

    changes = {"method": TOP, "export": {"enabled": False}}
    _stopped(parse({**raw, **changes}), tmp_path / "again", "step 1 of 9")
    again = tfft.train({**raw, **changes}, tmp_path / "again")
    for path, value in values(top.model).items():
        np.testing.assert_array_equal(values(again.model)[path], value, err_msg=path)


def test_statistics_move_where_that_is_wanted_and_cannot_be_set_anew(raw, folder, tmp_path):
    changes = {"export": {"enabled": False}, "train": {**raw["train"], "batch_norm": "train"}}
    run = tfft.train({**raw, **changes}, tmp_path / "run")
    before, after = values(load(folder).model), values(run.model)
    assert all(not np.array_equal(before[p], after[p]) for p in before if "moving" in p)
    with pytest.raises(UserError, match=r"train\.batch_norm: adapt needs BatchNorm layers"):
        tfft.train({**raw, **changes}, tmp_path / "adapt", train={"batch_norm": "adapt"})


@pytest.mark.slow
def test_a_bfloat16_run_and_two_replicas(raw, tmp_path):
    one = {"export": {"enabled": False}, "distribute": {"precision": "mixed_bfloat16"}}
    assert tfft.train({**raw, **one}, tmp_path / "bf").metrics["validation/accuracy"] > 0.6
    found = {}
    for name in ("one_device", "mirrored"):
        devices = ["CPU:0", "CPU:1"][: 1 + (name == "mirrored")]
        settings = {"strategy": name, "devices": devices}
        run = tfft.train(
            {**raw, "export": {"enabled": False}, "distribute": settings}, tmp_path / name
        )
        found[name] = values(run.model)
    for path, value in found["one_device"].items():
        np.testing.assert_allclose(found["mirrored"][path], value, atol=1e-4, err_msg=path)


@pytest.fixture(scope="module")
def real(real_data, tmp_path_factory):
    """ImageNet's MobileNetV2 for pictures of 96 pixels: its weights, and as a SavedModel."""
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
def test_a_real_networks_features_are_those_of_keras_applications(real):
    weights, folder, pictures = real
    config = ModelConfig(backbone="keras:MobileNetV2", weights=str(weights), image_size=96)
    one, other = backbones.load(config), load(folder, scaling="tf")
    files = sorted((pictures / "test").glob("*/*.jpg"))[::50]
    pixels = ImageInputs(one.image_spec).batch([str(f) for f in files])
    found, want = (b.model.predict_on_batch(pixels)["pooled"] for b in (other, one))
    np.testing.assert_allclose(found, want, atol=1e-5)
    assert len(other.stages) >= 17  # its blocks, of which the lowest two are cut by their names


@pytest.mark.slow
def test_a_real_network_is_frozen_resumed_and_served(real, tmp_path):
    from tests.tasks.test_image_runs import _stopped

    _, folder, pictures = real
    for name in ("cat", "ship"):
        (tmp_path / "rows" / name).mkdir(parents=True)
        for file in sorted((pictures / "train" / name).glob("*.jpg"))[:60]:
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
    whole = tfft.train(raw, tmp_path / "whole")
    before, after = values(load(folder).model), values(whole.model)
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    stages = list(whole.backbone.stages)
    last = max(at for at, s in enumerate(stages) if s.name.startswith("block_"))
    below, top = stages[: last - 1], stages[last - 1 :]
    of_top = [p for p in moved if any(re.match(s.pattern, p) for s in top)]
    assert of_top and not [p for p in moved if any(re.match(s.pattern, p) for s in below)]
    assert not [path for path in moved if "moving" in path]
    _stopped(parse(raw), tmp_path / "again", "step 1 of 12")
    again = tfft.train(raw, tmp_path / "again")
    for path, value in after.items():
        np.testing.assert_array_equal(values(again.model)[path], value, err_msg=path)
    row = whole.datasets.train.raw(0)
    served = ExportedModel(whole.workdir / "export").probabilities([row], 1)
    live = whole.predict([row])[0]["probabilities"]
    np.testing.assert_allclose(served[0], [live[n] for n in whole.labels], atol=1e-5)


def test_its_own_regularization_is_part_of_the_loss(tmp_path):
    model = small()
    path = save(model, tmp_path / "saved", decay=0.1)
    layer = load(path).model.get_layer("hub")
    layer(PIXELS, training=True)
    kernels = [v for v in layer.weights if len(v.shape) > 1]
    expected = 0.1 * sum(0.5 * np.square(np.asarray(v.value)).sum() for v in kernels)
    np.testing.assert_allclose(float(layer.losses[0]), expected, rtol=1e-5)


class Archive(http.server.BaseHTTPRequestHandler):
    body, asked = b"", []

    def do_GET(self):
        self.asked.append(self.path)
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
        assert load(handle).features == load(handle).features == {"pooled": 16}
        assert Archive.asked == ["/model/1?tf-hub-format=compressed"]
        name = hashlib.sha1(handle.encode()).hexdigest()
        assert (tmp_path / name / "saved_model.pb").is_file()
        with pytest.raises(UserError, match="cannot be downloaded: HTTP Error 404"):
            load(f"http://127.0.0.1:{server.server_port}/other")
        pretrained._download_archive(
            handle, tmp_path / name
        )  # as of another process at the same time
        (tmp_path / name / "saved_model.pb").unlink()
        assert load(handle).features == {"pooled": 16}
        server.shutdown()
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


def test_what_is_refused(tmp_path, folder):
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

    module = Bad(small())
    module.__call__.get_concrete_function(tf.TensorSpec([None, SIZE, SIZE, 3], tf.float32))
    tf.saved_model.save(module, str(tmp_path / "bad"))
    with pytest.raises(UserError, match="holds the operation WriteFile, which tfft never runs"):
        load(tmp_path / "bad")
    small().export(tmp_path / "signatures", verbose=False)
    with pytest.raises(UserError, match=r"not in TF2's reusable format|does not take pictures"):
        load(tmp_path / "signatures")
    with pytest.raises(UserError, match=r"does not take pictures of 64 x 64"):
        load(folder, image_size=64)
    with pytest.raises(UserError, match=r"model\.stages: 'convv' matches no variable"):
        load(folder, stages=["convv", "BN"])
    with pytest.raises(UserError, match=r"no pattern matches 'block_1_BN/gamma'"):
        load(folder, stages=["conv"])
