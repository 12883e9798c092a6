"""A run resumes only on the same data, classes and weights; workers must agree on them."""

import fcntl
import os
import resource
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

import tfft
from tests.conftest import write_csv
from tests.processes import Command
from tfft import backbones, train
from tfft.config import Source, parse
from tfft.data import Dataset, images
from tfft.data.prepared import Request
from tfft.data.targets import CLASS
from tfft.distribute import strategies
from tfft.distribute.launcher import find_free_ports
from tfft.model import weight_file
from tfft.preprocess.image import ImageInputs
from tfft.spec import ImageSpec
from tfft.training import checkpoints, fingerprint, setup
from tfft.utils.errors import Interrupted, UserError


def file_contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def head_config(config):
    return {**config, "method": {"name": "head"}, "export": {"enabled": False}}


def test_resume_on_other_data_is_refused(head_config, tmp_path):
    workdir, table = tmp_path / "run", tmp_path / "train.csv"
    parsed = parse({**head_config, "train": {**head_config["train"], "epochs": 2}})
    with pytest.raises(Interrupted):
        train.run(parsed, workdir, epochs=1)
    original, rows = file_contents(workdir), table.read_bytes()

    header, *lines = rows.decode().splitlines()
    table.write_text("\n".join([header, *reversed(lines[: len(lines) * 3 // 4])]) + "\n")
    with pytest.raises(UserError, match=r"cannot resume.*data\.train: \d+ rows .*data\.labels: "):
        train.run(parsed, workdir)
    assert file_contents(workdir) == original

    table.write_bytes(rows)
    assert train.run(parsed, workdir).metrics["steps"] == 2 * steps_per_epoch(workdir)


def steps_per_epoch(workdir):
    """Return the steps of an epoch, after which the first checkpoint was written."""
    names = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    return int(names[0].removeprefix("step_"))


def test_the_error_names_what_changed(tmp_path):
    saved = {"model.backbone": "aa", "data.labels": "neg, pos"}
    fingerprint.require_unchanged(saved, dict(saved), tmp_path)
    with pytest.raises(UserError, match=r"data\.labels: neg, pos at the checkpoint, pos, neg now"):
        fingerprint.require_unchanged(saved, {**saved, "data.labels": "pos, neg"}, tmp_path)
    with pytest.raises(UserError, match=r"model\.backbone: aa at the checkpoint, bb now"):
        fingerprint.require_unchanged(saved, {**saved, "model.backbone": "bb"}, tmp_path)


def test_workers_compare_all_sections_without_paths(config, monkeypatch):
    """A fake sum over the workers returns the digests of another worker."""
    monkeypatch.setattr(strategies, "workers", lambda: strategies.Workers(2, 0))
    settings = fingerprint.settings(parse(config))
    other_path = {**config, "data": {**config["data"], "train": "/other/disk/train.csv"}}
    # Paths may differ; the content of the files is compared elsewhere.
    assert fingerprint.settings(parse(other_path)) == settings

    def digests_of(values):
        messages = []
        monkeypatch.setattr(strategies, "sum_over_workers", lambda _, x: messages.append(x) or x)
        with pytest.raises(UserError):
            fingerprint.require_equal_on_workers(None, values)  # the other worker sent zeros
        return messages[0][0]

    for section, key, value in (("train", "seed", 7), ("optimizer", "learning_rate", 0.5)):
        other_config = {**config, section: {**config.get(section, {}), key: value}}
        other_digests = digests_of(fingerprint.settings(parse(other_config)))

        def fake_sum(_, digests, other_digests=other_digests):
            digests[1] = other_digests
            return digests

        monkeypatch.setattr(strategies, "sum_over_workers", fake_sum)
        with pytest.raises(UserError, match=f"^{section}: differs between worker 0 and worker 1"):
            fingerprint.require_equal_on_workers(None, settings)


def test_workers_with_different_rows_do_not_train(head_config, tmp_path):
    write_csv(tmp_path / "other.csv", 100, seed=5)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(head_config))
    addresses = ",".join(f"127.0.0.1:{port}" for port in find_free_ports(2))
    command = ["train", f"--config={path}", f"--workdir={tmp_path / 'run'}"]
    command.append(f"--workers={addresses}")
    workers = [
        Command(*command, "--worker=0"),
        Command(*command, "--worker=1", f"--set=data.train={tmp_path / 'other.csv'}"),
    ]
    for code, log in [worker.wait() for worker in workers]:
        assert code == 2 and "Traceback" not in log, log
    assert "data.train: differs between worker 0 and worker 1" in workers[0].stderr
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_locked_directory_is_refused(head_config, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    folder = os.open(workdir, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        with pytest.raises(UserError, match="run: another process trains there"):
            tfft.train(head_config, workdir=workdir)
    finally:
        os.close(folder)
    assert list(workdir.iterdir()) == []


def test_a_full_disk_is_a_user_error_and_loses_nothing(tiny_model, tmp_path):
    """A limit on the size of a file simulates a full disk."""
    path = tmp_path / "best" / "weights.safetensors"
    weight_file.save(tiny_model, path, {})
    original = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = checkpoints.Checkpoints(tmp_path / "checkpoints", 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(original) // 2, limits[1]))
    try:
        with pytest.raises(UserError, match="best: cannot be written: "):
            weight_file.save(tiny_model, path, {})
        writer.save(tiny_model, checkpoints.TrainingState(step=1))
        with pytest.raises(UserError, match="checkpoints: cannot be written: "):
            writer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == original
    assert [p.name for p in tmp_path.rglob("*") if p.name.startswith(".")] == []
    writer.save(tiny_model, checkpoints.TrainingState(step=2))
    writer.wait()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000002"]


@pytest.fixture(scope="module")
def tiny_model():
    import keras

    model = keras.Sequential([keras.layers.Input((64,)), keras.layers.Dense(512)])
    model.compile("sgd", "mse")
    return model


def test_top_5_accuracy_needs_six_classes():
    raw = {"data": {"train": "x.csv"}, "model": {"backbone": "hf:x"}}
    raw |= {"task": {"name": "image_classification"}, "train": {"metric": "top_5_accuracy"}}

    def data(classes):
        prepared = SimpleNamespace(rows=3)
        train = Dataset(prepared, np.arange(3), np.zeros(3, np.int32), CLASS)
        return SimpleNamespace(train=train, labels=[str(label) for label in range(classes)])

    setup.check_metric(parse(raw), data(6))
    with pytest.raises(UserError, match=r"of 5 classes has accuracy, .*Received: 'top_5_accuracy'"):
        setup.check_metric(parse(raw), data(5))


def test_the_path_of_a_table_does_not_matter(config, tmp_path):
    parsed = parse(config)
    backbone = backbones.load(parsed.model, "float32")
    moved = str(shutil.copy(tmp_path / "train.csv", tmp_path / "moved.csv"))
    config["data"]["train"] = moved
    moved_config = parse(config)
    first, second = (
        fingerprint.of(each, backbone, setup.read_data(each, backbone)[1])
        for each in (parsed, moved_config)
    )
    assert first == second
    with open(moved, "a") as file:
        file.write("one more sky,blue\n")
    third = fingerprint.of(moved_config, backbone, setup.read_data(moved_config, backbone)[1])
    assert {name for name in first if first[name] != third[name]} >= {"data.train"}
    assert third["data.test"] == first["data.test"]


def test_the_path_and_the_time_of_images_do_not_matter(tmp_path):
    images_pixels = np.random.default_rng(0).integers(0, 256, (4, 9, 9, 3), np.uint8)
    for index, pixels in enumerate(images_pixels):
        path = tmp_path / "a" / f"class_{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for path in (tmp_path / "b").rglob("*.png"):
        os.utime(path, (1, 1))
    inputs = ImageInputs(ImageSpec(size=(8, 8)))

    def content(folder):
        source = Source(source="images", path=str(folder))
        request = Request(source, ("image", "label"), "data.train", "stop")
        return images.prepare(request, inputs, tmp_path / "cache", False).content

    assert content(tmp_path / "a") == content(tmp_path / "b")
    Image.fromarray(255 - images_pixels[0]).save(tmp_path / "b" / "class_0" / "0.png")
    assert content(tmp_path / "a") != content(tmp_path / "b")
