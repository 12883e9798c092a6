"""Versions, labels, warm-up, batching and user errors of `tfft serve`."""

import shutil
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import requests

from tests.console import run_command
from tests.serve.conftest import NAME, stop, tfft_server
from tfft.serve import json_tensors, versions, warmup
from tfft.serve.batching import Batcher
from tfft.serve.failure import Failure
from tfft.serve.loaded import LoadedVersion


@pytest.mark.slow
def test_newer_version_is_served_without_restart_and_labels_stay(exported, base, tmp_path):
    """`tfft export` adds a version; the label stays until the user moves it."""
    folder = tmp_path / "export"
    shutil.copytree(base, folder)
    server = tfft_server(folder)
    try:
        assert server.name == NAME
        assert server.post(path="/labels/stable", json={"inputs": ["a"]}).status_code == 200
        assert server.post(path="/labels/canary", json={"inputs": ["a"]}).status_code == 400
        assert exported.export(folder).name == "2"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            statuses = requests.get(server.model, timeout=10).json()["model_version_status"]
            if {entry["version"]: entry["state"] for entry in statuses}.get("2") == "AVAILABLE":
                break
            time.sleep(0.3)
        time.sleep(2 * versions.POLL_SECONDS)
        metadata = requests.get(f"{server.model}/labels/stable/metadata", timeout=10).json()
        assert metadata["model_spec"]["version"] == "1"
        metadata = requests.get(f"{server.model}/metadata", timeout=10).json()
        assert metadata["model_spec"]["version"] == "2"
    finally:
        assert stop(server) == 0


def test_warmup_requests_are_replayed(exported, base):
    """They cover every signature, with batch sizes that the batching parameters allow."""
    loaded, requests = LoadedVersion(base / "1", 1), []

    def run(signature, inputs):
        requests.append((signature, inputs))
        return signature.run(inputs)

    warmup.replay(loaded, run)
    assert {signature.name for signature, _ in requests} == set(loaded.signatures)
    text = (base / "batching_params.pbtxt").read_text()
    sizes = {int(line.split()[1]) for line in text.splitlines() if line.startswith("allowed")}
    assert {1} <= {len(next(iter(inputs.values()))) for _, inputs in requests} <= sizes
    for signature, inputs in requests:
        outputs = signature.run(inputs)
        scores = outputs.get("scores", outputs.get("probabilities"))
        np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
    lengths = {v["padding_mask"].sum(axis=1).max() for s, v in requests if s.name == "tensors"}
    assert len(lengths) >= 2  # short rows and long ones


def test_serve_command_reports_user_errors(base, tmp_path):
    for flags, message in (
        ([], "one of --workdir and --model_base_path is required"),
        ([f"--model_base_path={tmp_path}"], "must contain a version"),
        (
            [f"--model_base_path={base}", "--model_name=other"],
            f"the model must be one of {NAME}. Received: 'other'",
        ),
    ):
        code, _, err = run_command("serve", *flags)
        assert code == 2 and message in err, err
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"no model")
    code, _, err = run_command("serve", f"--model_base_path={tmp_path}")
    assert code == 2 and "cannot be loaded" in err
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        code, _, err = run_command("serve", f"--model_base_path={base}", f"--rest_api_port={port}")
        assert code == 2 and f"cannot listen on 127.0.0.1:{port}" in err


class Doubling:
    """A signature that multiplies numbers below 100, and records the sizes of its batches."""

    name, inputs = "double", {"x": None}

    def __init__(self, factor=2):
        self.factor, self.batches, self.release = factor, [], threading.Event()

    def batch_rows(self, inputs):
        return len(inputs["x"])

    def run(self, inputs):
        assert self.release.wait(10)
        self.batches.append(len(inputs["x"]))
        if (inputs["x"] >= 100).any():
            raise Failure("INVALID_ARGUMENT", "too large")
        return {"y": self.factor * inputs["x"]}


def test_requests_that_wait_are_batched():
    signature, batcher = Doubling(), Batcher(max_rows=4)
    futures = [batcher.submit(signature, {"x": np.array([value])}) for value in range(10)]
    signature.release.set()
    assert [int(future.result(10)["y"][0]) for future in futures] == [
        2 * value for value in range(10)
    ]
    assert sum(signature.batches) == 10
    assert max(signature.batches) == 4 and len(signature.batches) <= 4
    batcher.close()


def test_versions_are_not_batched_together():
    """Their signatures have the same name and inputs."""
    older, newer, batcher = Doubling(), Doubling(factor=3), Batcher(max_rows=8)
    futures = [
        (signature.factor, batcher.submit(signature, {"x": np.array([1])}))
        for signature in (older, newer, older, newer)
    ]
    older.release.set()
    newer.release.set()
    assert [int(future.result(10)["y"][0]) for _, future in futures] == [
        factor for factor, _ in futures
    ]
    batcher.close()


def test_bad_request_does_not_fail_its_batch():
    signature, batcher = Doubling(), Batcher(max_rows=8)
    futures = [batcher.submit(signature, {"x": np.array([number])}) for number in (1, 2, 100, 3)]
    signature.release.set()
    for future, expected in zip(futures, (2, 4, None, 6), strict=True):
        if expected is None:
            with pytest.raises(Failure, match="too large"):
                future.result(10)
        else:
            assert future.result(10)["y"] == [expected]
    batcher.close()


def test_full_queue_rejects_requests():
    signature, batcher = Doubling(), Batcher(max_queued=2)
    futures = []
    with pytest.raises(Failure, match="queue to which this task was submitted is full") as error:
        for value in range(5):
            futures.append(batcher.submit(signature, {"x": np.array([value])}))
    assert error.value.http == 503
    signature.release.set()
    assert all(future.result(10) for future in futures)
    batcher.close()


def test_server_imports_no_keras_or_tokenizers():
    """The graph contains the model and its preprocessing."""
    text = "".join(p.read_text() for p in Path(json_tensors.__file__).parent.glob("*.py"))
    for package in ("keras", "transformers", "tokenizers", "tfft.model", "tfft.preprocess"):
        assert f"import {package}" not in text and f"from {package}" not in text
