"""Fixtures: servers of the export of `exported` and of the model of TF Serving's tests."""

import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from tests.conftest import ROOT
from tests.serve.half_plus_two import CONFIG, save, serving
from tfft.distribute.launcher import find_free_ports

BINARY = "tensorflow_model_server"
NAME = "colours"


@dataclass
class Server:
    """A running server process and its addresses."""

    process: subprocess.Popen
    name: str
    rest: str
    grpc: str

    @property
    def model(self):
        return f"{self.rest}/v1/models/{self.name}"

    def post(self, method="predict", path="", **options):
        return requests.post(f"{self.model}{path}:{method}", timeout=60, **options)


def tfft_server(base, *flags):
    """Start `tfft serve` on free ports, and wait until it listens."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tfft.cli", "serve", f"--model_base_path={base}"),
            *("--rest_api_port=0", "--port=0", *flags),
        ],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = []
    for line in process.stderr:
        lines.append(line)
        match = re.search(r"REST (http://\S+)/v1/models/(\S+):predict   gRPC (\S+) ", line)
        if match:
            return Server(process, match[2], match[1], match[3])
    process.wait()
    raise AssertionError("".join(lines))


def tf_serving_server(base):
    """Start TF Serving on free ports, and wait until the model is available."""
    rest, grpc = find_free_ports(2)
    process = subprocess.Popen(
        [
            *(BINARY, f"--rest_api_port={rest}", f"--port={grpc}", f"--model_name={NAME}"),
            f"--model_base_path={base}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    server = Server(process, NAME, f"http://127.0.0.1:{rest}", f"127.0.0.1:{grpc}")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if "AVAILABLE" in requests.get(server.model, timeout=5).text:
                return server
        except requests.ConnectionError:
            time.sleep(0.5)
    raise AssertionError(f"{BINARY} did not start")


def stop(server):
    server.process.send_signal(signal.SIGTERM)
    try:
        server.process.communicate(timeout=20)
    finally:
        server.process.kill()
    return server.process.returncode


@pytest.fixture(scope="package")
def base(exported):
    return exported.workdir / "export"


@pytest.fixture(scope="package", params=["tfft", BINARY])
def server(request, base):
    """tfft's server, and TF Serving if its binary is on the PATH (so far it never was)."""
    if request.param == BINARY and shutil.which(BINARY) is None:
        pytest.skip(f"{BINARY} is not on the PATH: TF Serving itself is not tested")
    server = tf_serving_server(base) if request.param == BINARY else tfft_server(base)
    yield server
    stop(server)


@pytest.fixture(scope="package")
def half_plus_two(tmp_path_factory):
    """Folder of a version of TF Serving's test model."""
    folder = tmp_path_factory.mktemp("half_plus_two") / "1"
    save(folder)
    return folder


@pytest.fixture(scope="package")
def single_version_server(half_plus_two):
    """A server of version 123 of TF Serving's test model, with the label `label`.

    The folder also has version 124, which the config does not name.
    """
    base = half_plus_two.parent / "base"
    for version in ("00000123", "00000124"):
        shutil.copytree(half_plus_two, base / version)
    (base / "models.config").write_text(CONFIG.format(policy="specific { versions: 123 }"))
    with serving(base) as server:
        yield server


def resident_mib(process):
    """Return the resident memory of a process in MiB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024
