"""The same config gives the same model on one device, on several replicas, on several workers."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import GOLDEN, ROOT
from tests.model.matrix import SETTINGS
from tfft.distribute.launcher import _free_ports

# Largest difference of any weight after 20 steps; that of the figures is looked at beside it.
BOUNDS = {"bfloat16": 2e-3, "float16": 2e-3}
BOUND = 1e-5


def train(checkpoint, out, replicas=1, workers=1):
    """Run the matrix; the arrays of the first worker, and of the others."""
    command = [sys.executable, "-m", "tests.model.matrix"]
    command += [f"--checkpoint={checkpoint}", f"--out={out}", f"--replicas={replicas}"]
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(workers)]
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


def assert_equal(one, other):
    """Every weight of every setting, the losses and accuracies, the predictions."""
    assert set(one.files) == set(other.files)
    assert {key.split("|")[0] for key in one.files} == set(SETTINGS)
    for key in one.files:
        setting, path = key.split("|")
        bound = BOUNDS.get(setting, BOUND)
        found = {"history": 10 * bound, "figures": 10 * bound, "predicted": 10 * bound}
        expected = one[key].astype(np.float64)
        assert np.abs(expected - other[key]).max() <= found.get(path, bound), key
        assert np.isfinite(expected).all()


pytestmark = pytest.mark.slow  # minutes; test_step and test_loop are the quick ones


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one device makes of a tiny BERT."""
    out = tmp_path_factory.mktemp("matrix") / "one.npz"
    return train(GOLDEN / "encoders" / "bert", out)[0]


def test_the_settings_differ(alone):
    """Each does something: none of the weights are those of plain AdamW."""
    key = "block_1/up/kernel"
    plain = alone[f"adamw|{key}"]
    same = [n for n in SETTINGS if (alone.get(f"{n}|{key}", np.zeros(0)) == plain).all()]
    # Several steps at once, recomputing and averages aside are the same training.
    assert set(same) <= {"adamw", "steps_per_execution", "remat", "lora", "ema", "xla"}


def test_two_replicas(alone, tmp_path):
    assert_equal(alone, train(GOLDEN / "encoders" / "bert", tmp_path / "two.npz", 2)[0])


def test_two_workers(alone, tmp_path):
    found = train(GOLDEN / "encoders" / "bert", tmp_path / "workers.npz", workers=2)
    for worker in found:
        assert_equal(alone, worker)
    for key in found[0].files:  # and they agree to the bit
        np.testing.assert_array_equal(found[0][key], found[1][key], err_msg=key)


def test_four_replicas(alone, tmp_path):
    assert_equal(alone, train(GOLDEN / "encoders" / "bert", tmp_path / "four.npz", 4)[0])


def test_minilm(minilm, tmp_path):
    """The same at full size: 1, 2 and 4 replicas, 2 workers."""
    one = train(minilm, tmp_path / "one.npz")[0]
    for replicas in (2, 4):
        assert_equal(one, train(minilm, tmp_path / f"{replicas}.npz", replicas)[0])
    assert_equal(one, train(minilm, tmp_path / "workers.npz", workers=2)[0])
