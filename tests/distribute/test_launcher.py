"""Real processes: several workers over loopback, killed, started again; a run killed many times."""

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
from tfft.distribute.launcher import _free_ports

EPOCHS = 20
STEPS = 6 * EPOCHS


@pytest.fixture
def setting(config, tmp_path):
    """A config file without dropout, long enough to be interrupted, and its overrides."""
    config["model"]["dropout"], config["task"] = 0.0, {"dropout": 0.0}
    config["train"] |= {"epochs": EPOCHS, "checkpoint": {"every": "7 steps"}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


class Started:
    """A process of tfft from scratch, its standard error read as it comes.

    For what happens when an interpreter ends; the other tests use `Command`.
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


def workers_of(launcher):
    """Process ids of a launcher's workers (Linux)."""
    with open(f"/proc/{launcher.pid}/task/{launcher.pid}/children") as file:
        return [int(pid) for pid in file.read().split()]


def steps(workdir):
    """The step of the newest checkpoint."""
    names = [path.name for path in workdir.glob("checkpoints/step_*")]
    return max((int(name.removeprefix("step_")) for name in names), default=0)


def wait_for(condition, process):
    until = time.monotonic() + LIMIT
    while not condition():
        assert process.poll() is None and time.monotonic() < until, "ended too soon, or hangs"
        time.sleep(0.05)


def weights(workdir):
    return load_file(workdir / "best" / "weights.safetensors")


def assert_close(a, b, bound):
    a, b = weights(a), weights(b)
    for path, value in a.items():
        assert np.abs(value - b[path]).max() <= bound, path


def test_two_workers_killed_and_started_again(setting, tmp_path):
    """One of them is killed; the launcher starts both again; the result is that of one process."""
    command = ["train", f"--config={setting}"]
    alone = Command(*command, f"--workdir={tmp_path / 'one'}")
    workdir = tmp_path / "two"
    launcher = Command("launch", "--workers=2", "--restarts=1", *command, f"--workdir={workdir}")
    launcher.wait_for(lambda: steps(workdir) >= 20)
    os.kill(random.Random(0).choice(workers_of(launcher)), signal.SIGKILL)
    code, text = launcher.wait()
    assert code == 0, text
    assert re.search(r"launch: worker [01] was ended by SIGKILL; ending the others", text), text
    assert "launch: starting all 2 workers again (1 of 1 times)" in text
    assert re.search(rf"resuming at step \d+ of {STEPS}", text)
    assert "Traceback" not in text
    assert alone.wait()[0] == 0
    one, two = (json.loads((d / "metrics.json").read_text()) for d in (tmp_path / "one", workdir))
    assert two["test/accuracy"] == one["test/accuracy"]
    if one["best_step"] == two["best_step"]:
        assert_close(tmp_path / "one", workdir, 1e-3)  # after 120 steps of 1e-3, not 20 of 5e-5


@pytest.mark.parametrize(
    ("victim", "by"), [(0, "TF_CONFIG"), pytest.param(1, "flags", marks=pytest.mark.slow)]
)
def test_without_a_launcher_the_other_worker_ends_by_itself(setting, tmp_path, victim, by):
    workdir = tmp_path / "run"
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(2)]
    started = []
    for index in range(2):
        task = {"type": "worker", "index": index}
        cluster = json.dumps({"cluster": {"worker": addresses}, "task": task})
        command = ["train", f"--config={setting}", f"--workdir={workdir}"]
        if by == "flags":
            command += [f"--workers={','.join(addresses)}", f"--worker={index}"]
            cluster = ""
        started.append(Started(*command, environment={"TF_CONFIG": cluster}))
    wait_for(lambda: steps(workdir) >= 14, started[0].process)
    started[victim].process.kill()
    began = time.monotonic()
    code, text = started[1 - victim].wait()
    assert time.monotonic() - began < 30
    started[victim].wait()
    assert code == 3, text
    last = text.strip().split("\n")[-1]
    assert last.startswith("tfft: another worker was lost; the last checkpoint is kept")
    assert f"--workdir={workdir} goes on from it" in last
    assert "Traceback" not in text


def test_a_signal_to_the_launcher_saves(setting, tmp_path):
    workdir = tmp_path / "run"
    command = ["train", f"--config={setting}", f"--workdir={workdir}"]
    launcher = Command("launch", "--workers=2", "--restarts=5", *command)
    launcher.wait_for(lambda: steps(workdir) >= 7)
    pids = workers_of(launcher)
    launcher.send_signal(signal.SIGINT)
    code, text = launcher.wait()
    assert code == 3, text
    at = int(re.search(rf"interrupted at step (\d+) of {STEPS}, which is saved", text)[1])
    assert steps(workdir) == at
    assert "again" not in text and "Traceback" not in text
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


def test_mistakes_are_told_once_and_not_tried_again(setting, tmp_path):
    workdir = tmp_path / "run"
    command = ["train", f"--config={setting}", f"--workdir={workdir}", "--set=train.epoch=3"]
    code, text = Command("launch", "--workers=2", "--restarts=3", *command).wait()
    assert code == 2
    assert "train.epoch: unknown key; did you mean 'epochs'?" in text
    assert "again" not in text and not workdir.exists()
    for arguments, message in (
        (["launch", "--workers=2"], "launch: name the command to run"),
        (["launch", "predict"], "launch: the command must be train. Received: 'predict'"),
        (["launch", "--workers=0", "train"], "workers"),
    ):
        code, text = Command(*arguments).wait()
        assert code == 2 and message in text and "Traceback" not in text


def half_written(workdir):
    """Checkpoints that have no name yet."""
    return [name for name in os.listdir(workdir / "checkpoints") if name.startswith(".step_")]


def killed_again_and_again(setting, tmp_path, times, epochs=EPOCHS):
    """Kill a run at random moments, resume it each time; returns the two run directories."""
    command = ["train", f"--config={setting}", "--set=model.dropout=0.1"]
    command.append(f"--set=train.epochs={epochs}")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    undisturbed = Command(*command, f"--workdir={whole}")
    generator = random.Random(0)
    torn = 0
    for kill in range(times):
        run = Command(*command, f"--workdir={parts}")
        began = steps(parts)
        more = generator.randint(1, 3)
        run.wait_for(lambda b=began, m=more: steps(parts) >= min(6 * epochs - 7, b + m))
        if kill % 2:  # while a checkpoint is being written
            until = time.monotonic() + 1
            while not half_written(parts) and time.monotonic() < until:
                pass
        else:
            time.sleep(generator.uniform(0, 0.1))
        run.kill()
        torn += len(half_written(parts))
    code, text = Command(*command, f"--workdir={parts}").wait()
    assert code == 0, text
    assert undisturbed.wait()[0] == 0
    print(f"{times} kills, {torn} of them left a checkpoint half written")
    return whole, parts


def assert_bit_identical(whole, parts):
    assert_close(whole, parts, 0)
    path = f"checkpoints/step_{steps(whole):08d}/state.safetensors"
    a, b = load_file(whole / path), load_file(parts / path)
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)
    one, two = (json.loads((folder / "metrics.json").read_text()) for folder in (whole, parts))
    assert one == two
    assert not half_written(parts)


def test_killed_twice_it_ends_in_the_same_weights(setting, tmp_path):
    assert_bit_identical(*killed_again_and_again(setting, tmp_path, 2))


@pytest.mark.slow
def test_killed_twenty_times_it_ends_in_the_same_weights(setting, tmp_path):
    assert_bit_identical(*killed_again_and_again(setting, tmp_path, 20, epochs=50))
