"""Tests with real processes: workers that are killed and restarted, and runs killed many times."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from tests.processes import LIMIT, Command
from tests.tasks import samples
from tfft.distribute.launcher import find_free_ports

EPOCHS = 20
STEPS = 6 * EPOCHS


@pytest.fixture
def setting(config, tmp_path):
    """Path of a config file without dropout, for a run long enough to be interrupted."""
    config["model"]["dropout"], config["task"] = 0.0, {"dropout": 0.0}
    config["train"] |= {"epochs": EPOCHS, "checkpoint": {"every": "7 steps"}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


class FreshProcess:
    """A tfft process with its own interpreter, whose standard error is read in a thread.

    For tests of what happens at the exit of the interpreter; the other tests use `Command`.
    """

    def __init__(self, *arguments, environment=None):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tfft.cli", *map(str, arguments)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.lines = []
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr))
        self._reader.start()
        self._timer = threading.Timer(LIMIT, self.process.kill)
        self._timer.start()

    def wait(self):
        code = self.process.wait()
        self._timer.cancel()
        self._reader.join()
        return code, "".join(self.lines)


def worker_pids(launcher):
    """Return the process ids of a launcher's workers (Linux)."""
    with open(f"/proc/{launcher.pid}/task/{launcher.pid}/children") as file:
        return [int(pid) for pid in file.read().split()]


def last_step(workdir):
    """Return the step of the newest checkpoint."""
    names = [path.name for path in workdir.glob("checkpoints/step_*")]
    return max((int(name.removeprefix("step_")) for name in names), default=0)


def wait_for(condition, process):
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, "ended too soon, or hangs"
        time.sleep(0.05)


def load_weights(workdir):
    return load_file(workdir / "best" / "weights.safetensors")


def assert_close(a, b, bound):
    a, b = load_weights(a), load_weights(b)
    for path, value in a.items():
        assert np.abs(value - b[path]).max() <= bound, path


@pytest.mark.slow  # the next one kills a worker twice
def test_launcher_restarts_the_workers_after_a_kill(setting, tmp_path):
    """Kill one of two workers; after the restart the result equals that of one process."""
    command = ["train", f"--config={setting}"]
    reference = Command(*command, f"--workdir={tmp_path / 'one'}")
    workdir = tmp_path / "two"
    launcher = Command("launch", "--workers=2", "--restarts=1", *command, f"--workdir={workdir}")
    launcher.wait_for(lambda: last_step(workdir) >= 20)
    os.kill(random.Random(0).choice(worker_pids(launcher)), signal.SIGKILL)
    code, text = launcher.wait()
    assert code == 0, text
    assert re.search(r"launch: worker [01] was killed by SIGKILL; stopping the others", text), text
    assert "launch: restarting all 2 workers (1 of 1 times)" in text
    assert re.search(rf"resuming at step \d+ of {STEPS}", text)
    assert "Traceback" not in text
    assert reference.wait()[0] == 0
    one, two = (json.loads((d / "metrics.json").read_text()) for d in (tmp_path / "one", workdir))
    assert two["test/accuracy"] == one["test/accuracy"]
    if one["best_step"] == two["best_step"]:
        assert_close(tmp_path / "one", workdir, 1e-3)  # after 120 steps of 1e-3, not 20 of 5e-5


@pytest.mark.slow  # tests/tasks/test_contract.py trains each task on two replicas of one process
@pytest.mark.parametrize("task", ["text_regression", "token_classification", "question_answering"])
def test_two_workers_equal_one_process(task, tiny, tmp_path):
    data, backbone, *section = samples.SAMPLES[task](tiny, tmp_path)
    config = {
        "data": {**data, "validation": {"fraction": 0.25}},
        "model": {"backbone": backbone, "dropout": 0.0},
        "task": {"name": task, "dropout": 0.0, **dict(*section)},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"epochs": 2, "batch_size": 8},
        "evaluate": {"bootstrap": 0, "baselines": False},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    command = ["train", f"--config={path}"]
    launcher = Command("launch", "--workers=2", *command, f"--workdir={tmp_path / 'two'}")
    code, text = launcher.wait()
    assert code == 0, text
    code, text = Command(*command, f"--workdir={tmp_path / 'one'}").wait()
    assert code == 0, text
    one, two = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("one", "two"))
    assert one["best_step"] == two["best_step"]
    names = [name for name in one if name.startswith("validation/")]
    assert names
    for name in names:
        assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-4), name
    assert_close(tmp_path / "one", tmp_path / "two", 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "source"), [(0, "TF_CONFIG"), (1, "flags")])
def test_worker_without_launcher_ends_when_another_is_lost(setting, tmp_path, victim, source):
    workdir = tmp_path / "run"
    addresses = [f"127.0.0.1:{port}" for port in find_free_ports(2)]
    workers = []
    for index in range(2):
        task = {"type": "worker", "index": index}
        cluster = json.dumps({"cluster": {"worker": addresses}, "task": task})
        command = ["train", f"--config={setting}", f"--workdir={workdir}"]
        if source == "flags":
            command += [f"--workers={','.join(addresses)}", f"--worker={index}"]
            cluster = ""
        workers.append(FreshProcess(*command, environment={"TF_CONFIG": cluster}))
    wait_for(lambda: last_step(workdir) >= 14, workers[0].process)
    workers[victim].process.kill()
    start = time.monotonic()
    code, text = workers[1 - victim].wait()
    assert time.monotonic() - start < 30
    workers[victim].wait()
    assert code == 3, text
    last_line = text.strip().split("\n")[-1]
    assert last_line.startswith("tfft: another worker was lost; the last checkpoint is kept")
    assert f"--workdir={workdir} resumes from it" in last_line
    assert "Traceback" not in text


def test_signal_to_the_launcher_saves_the_state(setting, tmp_path):
    workdir = tmp_path / "run"
    command = ["train", f"--config={setting}", f"--workdir={workdir}"]
    launcher = Command("launch", "--workers=2", "--restarts=5", *command)
    launcher.wait_for(lambda: last_step(workdir) >= 7)
    pids = worker_pids(launcher)
    launcher.send_signal(signal.SIGINT)
    code, text = launcher.wait()
    assert code == 3, text
    step = int(re.search(rf"interrupted at step (\d+) of {STEPS}, which is saved", text)[1])
    assert last_step(workdir) == step
    assert "restarting" not in text and "Traceback" not in text
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


def test_user_errors_are_printed_once_without_restart(setting, tmp_path):
    workdir = tmp_path / "run"
    command = ["train", f"--config={setting}", f"--workdir={workdir}", "--set=train.epoch=3"]
    code, text = Command("launch", "--workers=2", "--restarts=3", *command).wait()
    assert code == 2
    assert "train.epoch: unknown key; did you mean 'epochs'?" in text
    assert "restarting" not in text and not workdir.exists()
    for arguments, message in (
        (["launch", "--workers=2"], "launch: name the command to run"),
        (["launch", "predict"], "launch: the command must be train. Received: 'predict'"),
        (["launch", "--workers=0", "train"], "workers"),
    ):
        code, text = Command(*arguments).wait()
        assert code == 2 and message in text and "Traceback" not in text


def unfinished_checkpoints(workdir):
    """Return the temporary names of checkpoints that are being written, or were when killed."""
    return [name for name in os.listdir(workdir / "checkpoints") if name.startswith(".step_")]


def train_with_kills(setting, tmp_path, num_kills, epochs=EPOCHS):
    """Kill a run at random moments and resume it, beside an undisturbed run.

    Returns the run directories: undisturbed, resumed.
    """
    command = ["train", f"--config={setting}", "--set=model.dropout=0.1"]
    command.append(f"--set=train.epochs={epochs}")
    undisturbed, resumed = tmp_path / "undisturbed", tmp_path / "resumed"
    undisturbed_run = Command(*command, f"--workdir={undisturbed}")
    generator = random.Random(0)
    num_unfinished = 0
    for kill in range(num_kills):
        run = Command(*command, f"--workdir={resumed}")
        first_step = last_step(resumed)
        num_steps = generator.randint(1, 3)
        run.wait_for(
            lambda f=first_step, n=num_steps: last_step(resumed) >= min(6 * epochs - 7, f + n)
        )
        if kill % 2:  # while a checkpoint is being written
            deadline = time.monotonic() + 1
            while not unfinished_checkpoints(resumed) and time.monotonic() < deadline:
                pass
        else:
            time.sleep(generator.uniform(0, 0.1))
        run.kill()
        num_unfinished += len(unfinished_checkpoints(resumed))
    code, text = Command(*command, f"--workdir={resumed}").wait()
    assert code == 0, text
    assert undisturbed_run.wait()[0] == 0
    print(f"{num_kills} kills, {num_unfinished} of them left an unfinished checkpoint")
    return undisturbed, resumed


def assert_bit_identical(undisturbed, resumed):
    assert_close(undisturbed, resumed, 0)
    path = f"checkpoints/step_{last_step(undisturbed):08d}/state.safetensors"
    a, b = load_file(undisturbed / path), load_file(resumed / path)
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)
    one, two = (
        json.loads((folder / "metrics.json").read_text()) for folder in (undisturbed, resumed)
    )
    assert one == two
    assert not unfinished_checkpoints(resumed)


def test_run_killed_twice_is_bit_identical(setting, tmp_path):
    assert_bit_identical(*train_with_kills(setting, tmp_path, 2))


@pytest.mark.slow
def test_run_killed_twenty_times_is_bit_identical(setting, tmp_path):
    assert_bit_identical(*train_with_kills(setting, tmp_path, 20, epochs=50))
