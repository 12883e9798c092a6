"""Servers: over the export of `exported`, and over the model of TF Serving's tests."""

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
from tfft.distribute.launcher import _free_ports

BINARY = "tensorflow_model_server"
NAME = "colours"


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen
    name: str
    rest: str
    grpc: str

    @property
    def model(self):
        return f"{self.rest}/v1/models/{self.name}"

    def ask(self, verb="predict", path="", **options):
        return requests.post(f"{self.model}{path}:{verb}", timeout=60, **options)


def tfft_server(base, *flags):
    """`tfft serve` on ports that are free."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tfft.cli", "serve", f"--model_base_path={base}"),
            *("--rest_api_port=0", "--port=0", *flags),
        ],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = []
    for line in process.stderr:
        said.append(line)
        found = re.search(r"REST (http://\S+)/v1/models/(\S+):predict   gRPC (\S+) ", line)
        if found:
            return Server(process, found[2], found[1], found[3])
    process.wait()
    raise AssertionError("".join(said))


def serving_server(base):
    """TF Serving itself."""
    rest, grpc = _free_ports(2)
    process = subprocess.Popen(
        [
            *(BINARY, f"--rest_api_port={rest}", f"--port={grpc}", f"--model_name={NAME}"),
            f"--model_base_path={base}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    server = Server(process, NAME, f"http://127.0.0.1:{rest}", f"127.0.0.1:{grpc}")
    until = time.monotonic() + 60
    while time.monotonic() < until:
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
    """tfft's server; TF Serving's too where its binary is on the PATH. It never was so far."""
    if request.param == BINARY and shutil.which(BINARY) is None:
        pytest.skip(f"{BINARY} is not on the PATH: TF Serving itself is not tested")
    made = serving_server(base) if request.param == BINARY else tfft_server(base)
    yield made
    stop(made)


@pytest.fixture(scope="package")
def half_plus_two(tmp_path_factory):
    """A version folder of the model of TF Serving's tests."""
    folder = tmp_path_factory.mktemp("half_plus_two") / "1"
    save(folder)
    return folder


@pytest.fixture(scope="package")
def one(half_plus_two):
    """A server of that model, whose version is 123 of two in the folder; `label` is its label."""
    base = half_plus_two.parent / "base"
    for version in ("00000123", "00000124"):
        shutil.copytree(half_plus_two, base / version)
    (base / "models.config").write_text(CONFIG.format(policy="specific { versions: 123 }"))
    with serving(base) as server:
        yield server


def resident(process):
    """MiB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024
