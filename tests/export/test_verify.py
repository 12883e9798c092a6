"""The fork server that verifies exports: reuse, interrupts, crashes and its end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import running
from tfft.export import verify_process as module
from tfft.export.verify_process import Verifier

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks")

FAKE_SERVER = """
import json, os, sys, time
for line in sys.stdin:
    folder = json.loads(line)
    with open(folder + "/processes.txt", "a") as file:
        file.write(f"{os.getpid()}\\n")
    if os.path.exists(folder + "/crash"):
        os.kill(os.getpid(), 9)
    if os.path.exists(folder + "/hang") and os.fork() == 0:
        time.sleep(60)
    if os.path.exists(folder + "/hang"):
        os.wait()
    print(3 if os.path.exists(folder + "/errors.txt") else 0, flush=True)
    if os.path.exists(folder + "/last"):  # like an interpreter that ends slowly
        os.close(1)
        time.sleep(1)
        os._exit(0)
"""


@pytest.fixture
def verifier(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(FAKE_SERVER)
    verifier = Verifier(script)
    yield verifier
    verifier._stop()


def process_ids(folder):
    return (folder / "processes.txt").read_text().split()


def test_one_process_verifies_several_exports(verifier, tmp_path):
    assert verifier.run(tmp_path) is None
    (tmp_path / "errors.txt").write_text("Traceback ...\nKeyError: no such signature\n")
    assert verifier.run(tmp_path) == "KeyError: no such signature"
    (tmp_path / "errors.txt").unlink()
    assert verifier.run(tmp_path) is None
    assert len(process_ids(tmp_path)) == 3 and len(set(process_ids(tmp_path))) == 1


def test_idle_server_is_restarted(verifier, tmp_path):
    (tmp_path / "last").touch()
    assert verifier.run(tmp_path) is None
    assert verifier.run(tmp_path) is None
    assert len(set(process_ids(tmp_path))) == 2


def test_relative_folder_is_resolved_by_the_caller(verifier, tmp_path, monkeypatch):
    assert verifier.run(tmp_path) is None
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path)
    assert verifier.run("inner") is None
    assert process_ids(tmp_path / "inner") == process_ids(tmp_path)


def test_interrupt_kills_the_server_and_its_forks(verifier, tmp_path, monkeypatch):
    (tmp_path / "hang").touch()

    def interrupt(self, folder):
        process = self._start()
        process.stdin.write(f'"{folder}"\n')
        process.stdin.flush()
        while not (tmp_path / "processes.txt").is_file():
            time.sleep(0.05)
        time.sleep(0.2)  # it forks
        raise KeyboardInterrupt

    monkeypatch.setattr(Verifier, "_request", interrupt)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        verifier.run(tmp_path)
    assert time.monotonic() - start < 20
    assert not os.path.exists(f"/proc/{process_ids(tmp_path)[0]}")


def test_crashed_server_is_reported_and_restarted(verifier, tmp_path):
    (tmp_path / "crash").touch()
    assert verifier.run(tmp_path) == "no output"
    (tmp_path / "crash").unlink()
    assert verifier.run(tmp_path) is None


HANGING_SERVER = """
import os, sys, time
sys.path.insert(0, {folder!r})
import verify as module

def verify(folder):
    with open(folder + "/ids", "w") as file:
        file.write(f"{{os.getppid()}} {{os.getpid()}}\\n")
    time.sleep(600)

module.import_packages, module.verify = (lambda: None), verify
module.serve(int(sys.argv[2]))
"""
RUN_VERIFIER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import verify_process
verify_process.Verifier(Path(sys.argv[2])).run(Path(sys.argv[3]))
"""


def test_server_ends_with_a_killed_export(tmp_path):
    """Both the fork and its server end."""
    folder = str(Path(module.__file__).parent)
    script, id_file = tmp_path / "script.py", tmp_path / "ids"
    script.write_text(HANGING_SERVER.format(folder=folder))
    command = [sys.executable, "-c", RUN_VERIFIER, folder, str(script), str(tmp_path)]
    with subprocess.Popen(command) as process:
        deadline = time.monotonic() + 60
        while not (id_file.is_file() and id_file.read_text().endswith("\n")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    started = id_file.read_text().split()
    while any(map(running, started)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
