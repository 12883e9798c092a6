"""Versions, labels, warm-up, batches and mistakes of the command."""

import shutil
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import requests

from tests.console import command
from tests.serve.conftest import NAME, stop, tfft_server
from tfft.serve import json_tensors, versions, warmup
from tfft.serve.batching import Batcher
from tfft.serve.failure import Failure
from tfft.serve.loaded import LoadedVersion


@pytest.mark.slow
def test_a_newer_version_is_served_without_a_restart_and_labels_hold(exported, base, tmp_path):
    """`tfft export` adds a version; the label stays until the user moves it."""
    folder = tmp_path / "export"
    shutil.copytree(base, folder)
    server = tfft_server(folder)
    try:
        assert server.name == NAME
        assert server.ask(path="/labels/stable", json={"inputs": ["a"]}).status_code == 200
        assert server.ask(path="/labels/canary", json={"inputs": ["a"]}).status_code == 400
        assert exported.export(folder).name == "2"
        until = time.monotonic() + 60
        while time.monotonic() < until:
            found = requests.get(server.model, timeout=10).json()["model_version_status"]
            if {one["version"]: one["state"] for one in found}.get("2") == "AVAILABLE":
                break
            time.sleep(0.3)
        time.sleep(2 * versions.POLL_SECONDS)
        told = requests.get(f"{server.model}/labels/stable/metadata", timeout=10).json()
        assert told["model_spec"]["version"] == "1"
        told = requests.get(f"{server.model}/metadata", timeout=10).json()
        assert told["model_spec"]["version"] == "2"
    finally:
        assert stop(server) == 0


def test_the_warm_up_file_is_read_back_and_replayed(exported, base):
    """Every signature, in batch sizes of the batching parameters."""
    loaded, asked = LoadedVersion(base / "1", 1), []

    def run(signature, inputs):
        asked.append((signature, inputs))
        return signature.run(inputs)

    warmup.replay(loaded, run)
    assert {signature.name for signature, _ in asked} == set(loaded.signatures)
    text = (base / "batching_params.pbtxt").read_text()
    sizes = {int(line.split()[1]) for line in text.splitlines() if line.startswith("allowed")}
    assert {1} <= {len(next(iter(inputs.values()))) for _, inputs in asked} <= sizes
    for signature, inputs in asked:
        found = signature.run(inputs)
        scores = found.get("scores", found.get("probabilities"))
        np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
    lengths = {v["padding_mask"].sum(axis=1).max() for s, v in asked if s.name == "tensors"}
    assert len(lengths) >= 2  # short rows and long ones


def test_mistakes_of_the_command_are_told(base, tmp_path):
    for flags, message in (
        ([], "--workdir or --model_base_path"),
        ([f"--model_base_path={tmp_path}"], "must contain a version"),
        (
            [f"--model_base_path={base}", "--model_name=other"],
            f"the model must be one of {NAME}. Received: 'other'",
        ),
    ):
        code, _, err = command("serve", *flags)
        assert code == 2 and message in err, err
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"no model")
    code, _, err = command("serve", f"--model_base_path={tmp_path}")
    assert code == 2 and "cannot be loaded" in err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = command("serve", f"--model_base_path={base}", f"--rest_api_port={port}")
        assert code == 2 and f"cannot listen on 127.0.0.1:{port}" in err


class Doubling:
    """A signature that doubles numbers below 100, and remembers its batches."""

    name, inputs = "double", {"x": None}

    def __init__(self, factor=2):
        self.factor, self.batches, self.go = factor, [], threading.Event()

    def batch_rows(self, inputs):
        return len(inputs["x"])

    def run(self, inputs):
        assert self.go.wait(10)
        self.batches.append(len(inputs["x"]))
        if (inputs["x"] >= 100).any():
            raise Failure("INVALID_ARGUMENT", "too large")
        return {"y": self.factor * inputs["x"]}


def test_what_comes_in_meanwhile_is_answered_together():
    signature, batcher = Doubling(), Batcher(max_rows=4)
    asked = [batcher.submit(signature, {"x": np.array([at])}) for at in range(10)]
    signature.go.set()
    assert [int(one.result(10)["y"][0]) for one in asked] == [2 * at for at in range(10)]
    assert sum(signature.batches) == 10
    assert max(signature.batches) == 4 and len(signature.batches) <= 4
    batcher.close()


def test_versions_of_a_model_are_not_answered_together():
    """Their signatures have the same name and take the same inputs."""
    older, newer, batcher = Doubling(), Doubling(factor=3), Batcher(max_rows=8)
    waiting = [
        (signature.factor, batcher.submit(signature, {"x": np.array([1])}))
        for signature in (older, newer, older, newer)
    ]
    older.go.set()
    newer.go.set()
    assert [int(request.result(10)["y"][0]) for _, request in waiting] == [f for f, _ in waiting]
    batcher.close()


def test_one_bad_request_does_not_spoil_the_others():
    signature, batcher = Doubling(), Batcher(max_rows=8)
    asked = [batcher.submit(signature, {"x": np.array([at])}) for at in (1, 2, 100, 3)]
    signature.go.set()
    for one, value in zip(asked, (2, 4, None, 6), strict=True):
        if value is None:
            with pytest.raises(Failure, match="too large"):
                one.result(10)
        else:
            assert one.result(10)["y"] == [value]
    batcher.close()


def test_too_many_that_wait_are_refused():
    signature, batcher = Doubling(), Batcher(max_queued=2)
    asked = []
    with pytest.raises(Failure, match="queue to which this task was submitted is full") as error:
        for at in range(5):
            asked.append(batcher.submit(signature, {"x": np.array([at])}))
    assert error.value.http == 503
    signature.go.set()
    assert all(one.result(10) for one in asked)
    batcher.close()


def test_nothing_but_tensorflow_is_loaded():
    """What serves needs neither Keras models nor tokenizers: the graph has all."""
    text = "".join(p.read_text() for p in Path(json_tensors.__file__).parent.glob("*.py"))
    for package in ("keras", "transformers", "tokenizers", "tfft.model", "tfft.preprocess"):
        assert f"import {package}" not in text and f"from {package}" not in text
