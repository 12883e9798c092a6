"""A run resumes on the data, classes and weights that it began with; workers agree on them."""

import fcntl
import os
import resource
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

import tfft
from tests.conftest import write_csv
from tests.processes import Command
from tfft import backbones, train
from tfft.config import Source, parse
from tfft.data import images
from tfft.data.prepared import Request
from tfft.distribute import strategies
from tfft.distribute.launcher import _free_ports
from tfft.model import weight_file
from tfft.preprocess.image import ImageInputs
from tfft.spec import ImageSpec
from tfft.training import checkpoints, fingerprint, setup
from tfft.utils.errors import Interrupted, UserError


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def head_config(config):
    return {**config, "method": {"name": "head"}, "export": {"enabled": False}}


def test_resume_on_other_data_is_refused(head_config, tmp_path):
    workdir, table = tmp_path / "run", tmp_path / "train.csv"
    parsed = parse({**head_config, "train": {**head_config["train"], "epochs": 2}})
    with pytest.raises(Interrupted):
        train.run(parsed, workdir, epochs=1)
    before, rows = contents(workdir), table.read_bytes()

    header, *lines = rows.decode().splitlines()
    table.write_text("\n".join([header, *reversed(lines[: len(lines) * 3 // 4])]) + "\n")
    with pytest.raises(UserError, match=r"cannot resume.*data\.train: \d+ rows .*data\.labels: "):
        train.run(parsed, workdir)
    assert contents(workdir) == before

    table.write_bytes(rows)
    assert train.run(parsed, workdir).metrics["steps"] == 2 * before_epoch(workdir)


def before_epoch(workdir):
    """The steps of an epoch, which the first checkpoint was written after."""
    names = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    return int(names[0].removeprefix("step_"))


def test_what_changed_is_named(tmp_path):
    saved = {"model.backbone": "aa", "data.labels": "neg, pos"}
    fingerprint.require_unchanged(saved, dict(saved), tmp_path)
    with pytest.raises(UserError, match=r"data\.labels: neg, pos at the checkpoint, pos, neg now"):
        fingerprint.require_unchanged(saved, {**saved, "data.labels": "pos, neg"}, tmp_path)
    with pytest.raises(UserError, match=r"model\.backbone: aa at the checkpoint, bb now"):
        fingerprint.require_unchanged(saved, {**saved, "model.backbone": "bb"}, tmp_path)


def test_workers_compare_everything(config, monkeypatch):
    """Another worker's digests are put in place of the sum that workers would compute."""
    monkeypatch.setattr(strategies, "workers", lambda: strategies.Workers(2, 0))
    ours = fingerprint.settings(parse(config))
    elsewhere = {**config, "data": {**config["data"], "train": "/other/disk/train.csv"}}
    assert fingerprint.settings(parse(elsewhere)) == ours  # the files' content is compared apart

    def sent(values):
        messages = []
        monkeypatch.setattr(strategies, "sum_over_workers", lambda _, x: messages.append(x) or x)
        with pytest.raises(UserError):
            fingerprint.require_equal_on_workers(None, values)  # the other sent nothing
        return messages[0][0]

    for section, key, value in (("train", "seed", 7), ("optimizer", "learning_rate", 0.5)):
        theirs = {**config, section: {**config.get(section, {}), key: value}}
        other = sent(fingerprint.settings(parse(theirs)))

        def total(_, digests, other=other):
            digests[1] = other
            return digests

        monkeypatch.setattr(strategies, "sum_over_workers", total)
        with pytest.raises(UserError, match=f"^{section}: differs between worker 0 and worker 1"):
            fingerprint.require_equal_on_workers(None, ours)


def test_workers_with_other_rows_do_not_train(head_config, tmp_path):
    write_csv(tmp_path / "other.csv", 100, seed=5)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(head_config))
    addresses = ",".join(f"127.0.0.1:{port}" for port in _free_ports(2))
    command = ["train", f"--config={path}", f"--workdir={tmp_path / 'run'}"]
    command.append(f"--workers={addresses}")
    started = [
        Command(*command, "--worker=0"),
        Command(*command, "--worker=1", f"--set=data.train={tmp_path / 'other.csv'}"),
    ]
    for code, text in [one.wait() for one in started]:
        assert code == 2 and "Traceback" not in text, text
    assert "data.train: differs between worker 0 and worker 1" in started[0].stderr
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_directory_in_use_is_refused(head_config, tmp_path):
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


def test_a_full_disk_is_one_line(tiny_model, tmp_path):
    """The limit on the size of a file stands in for the disk's."""
    path = tmp_path / "best" / "weights.safetensors"
    weight_file.save(tiny_model, path, {})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    keep = checkpoints.Checkpoints(tmp_path / "checkpoints", 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(UserError, match="best: cannot be written: "):
            weight_file.save(tiny_model, path, {})
        keep.save(tiny_model, checkpoints.TrainingState(step=1))
        with pytest.raises(UserError, match="checkpoints: cannot be written: "):
            keep.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.rglob("*") if p.name.startswith(".")] == []
    keep.save(tiny_model, checkpoints.TrainingState(step=2))
    keep.wait()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000002"]


@pytest.fixture(scope="module")
def tiny_model():
    import keras

    model = keras.Sequential([keras.layers.Input((64,)), keras.layers.Dense(512)])
    model.compile("sgd", "mse")
    return model


def test_a_metric_that_so_few_classes_do_not_have():
    raw = {"data": {"train": "x.csv"}, "model": {"backbone": "hf:x"}}
    raw |= {"task": {"name": "image_classification"}, "train": {"metric": "top_5_accuracy"}}
    setup.check_metric(parse(raw), [str(at) for at in range(6)])
    with pytest.raises(UserError, match=r"of 5 classes has accuracy, .*Received: 'top_5_accuracy'"):
        setup.check_metric(parse(raw), list(np.arange(5).astype(str)))


def test_the_place_of_a_table_does_not_matter(config, tmp_path):
    parsed = parse(config)
    backbone = backbones.load(parsed.model, "float32")
    moved = str(shutil.copy(tmp_path / "train.csv", tmp_path / "moved.csv"))
    config["data"]["train"] = moved
    elsewhere = parse(config)
    first, second = (
        fingerprint.of(one, backbone, setup.read_data(one, backbone)[1])
        for one in (parsed, elsewhere)
    )
    assert first == second
    with open(moved, "a") as file:
        file.write("one more sky,blue\n")
    third = fingerprint.of(elsewhere, backbone, setup.read_data(elsewhere, backbone)[1])
    assert {name for name in first if first[name] != third[name]} >= {"data.train"}
    assert third["data.test"] == first["data.test"]


def test_the_place_and_the_time_of_pictures_do_not_matter(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (4, 9, 9, 3), np.uint8)
    for at, pixels in enumerate(colours):
        path = tmp_path / "a" / f"class_{at % 2}" / f"{at}.png"
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
    Image.fromarray(255 - colours[0]).save(tmp_path / "b" / "class_0" / "0.png")
    assert content(tmp_path / "a") != content(tmp_path / "b")
