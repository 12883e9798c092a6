"""The process that verifies exports: asked again and again, ended, crashing."""

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

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")

ANSWERS = """
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
    if os.path.exists(folder + "/last"):  # as an interpreter that takes its time to end
        os.close(1)
        time.sleep(1)
        os._exit(0)
"""


@pytest.fixture
def verifier(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ANSWERS)
    verifier = Verifier(script)
    yield verifier
    verifier._stop()


def processes(folder):
    return (folder / "processes.txt").read_text().split()


def test_one_process_answers_for_several_exports(verifier, tmp_path):
    assert verifier.run(tmp_path) is None
    (tmp_path / "errors.txt").write_text("Traceback ...\nKeyError: no such signature\n")
    assert verifier.run(tmp_path) == "KeyError: no such signature"
    (tmp_path / "errors.txt").unlink()
    assert verifier.run(tmp_path) is None
    assert len(processes(tmp_path)) == 3 and len(set(processes(tmp_path))) == 1


def test_one_that_ended_while_idle_is_started_again(verifier, tmp_path):
    (tmp_path / "last").touch()
    assert verifier.run(tmp_path) is None
    assert verifier.run(tmp_path) is None
    assert len(set(processes(tmp_path))) == 2


def test_a_relative_folder_is_that_of_the_caller(verifier, tmp_path, monkeypatch):
    assert verifier.run(tmp_path) is None
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path)
    assert verifier.run("inner") is None
    assert processes(tmp_path / "inner") == processes(tmp_path)


def test_an_interrupt_ends_it_with_what_it_forked(verifier, tmp_path, monkeypatch):
    (tmp_path / "hang").touch()

    def interrupted(self, folder):
        process = self._start()
        process.stdin.write(f'"{folder}"\n')
        process.stdin.flush()
        while not (tmp_path / "processes.txt").is_file():
            time.sleep(0.05)
        time.sleep(0.2)  # it forks
        raise KeyboardInterrupt

    monkeypatch.setattr(Verifier, "_request", interrupted)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        verifier.run(tmp_path)
    assert time.monotonic() - began < 20
    assert not os.path.exists(f"/proc/{processes(tmp_path)[0]}")


def test_one_that_cannot_answer_is_told(verifier, tmp_path):
    (tmp_path / "crash").touch()
    assert verifier.run(tmp_path) == "no output"
    (tmp_path / "crash").unlink()
    assert verifier.run(tmp_path) is None


PROBE = """
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
EXPORT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import verify_process
verify_process.Verifier(Path(sys.argv[2])).run(Path(sys.argv[3]))
"""


def test_it_ends_with_an_export_that_is_killed(tmp_path):
    """The process that verifies, and the one that forked it."""
    folder = str(Path(module.__file__).parent)
    script, ids = tmp_path / "script.py", tmp_path / "ids"
    script.write_text(PROBE.format(folder=folder))
    command = [sys.executable, "-c", EXPORT, folder, str(script), str(tmp_path)]
    with subprocess.Popen(command) as process:
        until = time.monotonic() + 60
        while not (ids.is_file() and ids.read_text().endswith("\n")):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    started = ids.read_text().split()
    while any(map(running, started)):
        assert time.monotonic() < until
        time.sleep(0.05)
