"""Runs that share one backbone in memory, and the backbones that they refuse."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tfft
from tfft.utils.errors import UserError

ROWS = ["a red sky", "the blue apple like grass", "green"]
METHODS = {
    "lora": {},
    "bitfit": {},
    "prefix": {"length": 3},
    "prompt": {"length": 3},
    "adapter": {},
}


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """A run of each method, each with another seed."""
    from tests.conftest import write_csv

    folder = tmp_path_factory.mktemp("runs")
    data = {
        "train": str(write_csv(folder / "train.csv", 60)),
        "validation": None,
        "max_length": 16,
    }
    runs = {}
    for seed, (name, settings) in enumerate(METHODS.items()):
        config = {
            "data": data,
            "model": {"backbone": f"hf:{tiny}"},
            "method": {"name": name, **settings},
            "optimizer": {"learning_rate": 1e-2},
            "train": {"epochs": 2, "seed": seed},
            "export": {"enabled": False},
        }
        runs[name] = tfft.train(config, workdir=folder / name)
    return runs


def test_runs_on_a_shared_backbone_predict_as_alone(tiny, runs):
    adapters = tfft.SharedBackbone(f"hf:{tiny}")
    for name, run in runs.items():
        adapters.add(name, run.workdir)
    assert adapters.names == list(METHODS)
    for _ in range(2):  # the second round attaches each run again
        for name, run in runs.items():
            logits = adapters.use(name).logits(ROWS)
            np.testing.assert_allclose(logits, run.logits(ROWS), atol=1e-6, err_msg=name)
    for name, run in runs.items():  # rows of another width are traced again
        rows = ["a red sky is like the green grass an apple"]
        probabilities = adapters.predict(name, rows)[0]["probabilities"]
        assert probabilities == pytest.approx(run.predict(rows)[0]["probabilities"], abs=1e-6)
    with pytest.raises(UserError, match="no run is named 'lorra'; did you mean 'lora'"):
        adapters.use("lorra")
    with pytest.raises(UserError, match="the name 'lora' exists already"):
        adapters.add("lora", runs["lora"].workdir)


def test_another_backbone_is_refused(tiny, runs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    values = load_file(other / "model.safetensors")
    name = next(iter(values))
    save_file({**values, name: values[name] + 1}, other / "model.safetensors")
    with pytest.raises(UserError, match="was trained on another backbone"):
        tfft.load(runs["lora"].workdir, backbone=f"hf:{other}")
    with pytest.raises(UserError, match="was trained on another backbone"):
        tfft.SharedBackbone(f"hf:{other}").add("lora", runs["lora"].workdir)


def test_the_backbone_may_have_moved(tiny, runs, tmp_path):
    new_folder = tmp_path / "new_folder"
    shutil.copytree(tiny, new_folder)
    missing = f"hf:{tmp_path / 'missing'}"
    with pytest.raises(UserError, match="holds only the trained weights and needs its backbone"):
        tfft.load(runs["lora"].workdir, backbone=missing)
    loaded = tfft.load(runs["lora"].workdir, backbone=f"hf:{new_folder}")
    np.testing.assert_allclose(loaded.logits(ROWS), runs["lora"].logits(ROWS), atol=1e-6)


def test_a_run_that_trained_its_whole_backbone_is_refused(config, tiny, tmp_path):
    config["data"]["validation"] = config["data"]["test"] = None
    run = tfft.train({**config, "train": {"epochs": 1}}, workdir=tmp_path / "full")
    with pytest.raises(UserError, match="trained its whole backbone"):
        tfft.SharedBackbone(f"hf:{tiny}").add("full", run.workdir)
