"""Tests that training is equal on one device, on several replicas and on several workers."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import GOLDEN, ROOT
from tests.model.matrix import SETTINGS
from tfft.distribute.launcher import find_free_ports

# Largest difference of any weight after 20 steps. Metrics may differ by ten times as much.
BOUNDS = {"bfloat16": 2e-3, "float16": 2e-3}
BOUND = 1e-5
# Settings whose errors could grow with the size of the network. The others change which operations
# run, which the tiny network shows; all of them on MiniLM take hours on two cores.
MINILM_SETTINGS = ("adamw", "clipping", "layer_wise", "lora", "bfloat16", "float16")


def train(checkpoint, out, replicas=1, workers=1, settings=SETTINGS):
    """Run `tests.model.matrix`; return the arrays of each worker, the first worker first."""
    command = [sys.executable, "-m", "tests.model.matrix"]
    command += [f"--checkpoint={checkpoint}", f"--out={out}", f"--replicas={replicas}"]
    command.append(f"--settings={','.join(settings)}")
    addresses = [f"127.0.0.1:{port}" for port in find_free_ports(workers)]
    processes = []
    for index in range(workers):
        environment = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
        if workers > 1:
            task = {"type": "worker", "index": index}
            cluster = {"cluster": {"worker": addresses}, "task": task}
            environment["TF_CONFIG"] = json.dumps(cluster)
        processes.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        errors = [process.communicate(timeout=1500)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * workers, errors[0][-3000:]
    return [np.load(out), *(np.load(f"{out}.{i}.npz") for i in range(1, workers))]


def assert_equal(reference, actual, settings=SETTINGS):
    """Compare weights, losses, accuracies and predictions of every setting."""
    assert set(reference.files) == set(actual.files)
    assert {key.split("|")[0] for key in reference.files} == set(settings)
    for key in reference.files:
        setting, path = key.split("|")
        bound = BOUNDS.get(setting, BOUND)
        bounds = {"history": 10 * bound, "metrics": 10 * bound, "predictions": 10 * bound}
        expected = reference[key].astype(np.float64)
        assert np.abs(expected - actual[key]).max() <= bounds.get(path, bound), key
        assert np.isfinite(expected).all()


pytestmark = pytest.mark.slow  # minutes; test_train_step and test_loop are the quick tests


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """Arrays of a tiny BERT that was trained on one device."""
    out = tmp_path_factory.mktemp("matrix") / "one.npz"
    return train(GOLDEN / "encoders" / "bert", out)[0]


def test_settings_change_the_training(one_device):
    """The final weights of a setting differ from those of plain AdamW."""
    key = "block_1/up/kernel"
    plain = one_device[f"adamw|{key}"]
    same = [n for n in SETTINGS if (one_device.get(f"{n}|{key}", np.zeros(0)) == plain).all()]
    # These run the same training: more steps per call, recomputed activations, averages aside.
    assert set(same) <= {"adamw", "steps_per_execution", "remat", "lora", "ema", "xla"}


def test_two_replicas(one_device, tmp_path):
    assert_equal(one_device, train(GOLDEN / "encoders" / "bert", tmp_path / "two.npz", 2)[0])


def test_two_workers(one_device, tmp_path):
    results = train(GOLDEN / "encoders" / "bert", tmp_path / "workers.npz", workers=2)
    for arrays in results:
        assert_equal(one_device, arrays)
    for key in results[0].files:  # the workers agree to the bit
        np.testing.assert_array_equal(results[0][key], results[1][key], err_msg=key)


def test_four_replicas(one_device, tmp_path):
    assert_equal(one_device, train(GOLDEN / "encoders" / "bert", tmp_path / "four.npz", 4)[0])


@pytest.fixture(scope="module")
def minilm_on_one_device(minilm, tmp_path_factory):
    """Arrays of a network of full size that was trained on one device."""
    out = tmp_path_factory.mktemp("minilm") / "one.npz"
    return train(minilm, out, settings=MINILM_SETTINGS)[0]


@pytest.mark.parametrize(("replicas", "workers"), [(2, 1), (4, 1), (1, 2)])
def test_minilm(minilm, minilm_on_one_device, tmp_path, replicas, workers):
    results = train(minilm, tmp_path / "out.npz", replicas, workers, MINILM_SETTINGS)
    for arrays in results:
        assert_equal(minilm_on_one_device, arrays, MINILM_SETTINGS)
