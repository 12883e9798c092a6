"""Searches with real trials in separate processes: failures, kills, and the files that remain."""

import contextlib
import csv
import json
import os
import random
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import tfft
from tests.conftest import ROOT, write_csv
from tests.console import run_command
from tests.processes import Command
from tests.report.drawings import drawings
from tests.tasks.test_image_runs import write_folder
from tfft.config import load
from tfft.distribute.launcher import find_free_ports
from tfft.search import pipeline
from tfft.search.fork_server import ForkServer
from tfft.search.pipeline import search
from tfft.utils.errors import UserError


@pytest.fixture
def raw(tiny, tmp_path):
    """A search over the tiny BERT; a trial takes seconds."""
    return {
        "data": {
            "train": str(write_csv(tmp_path / "train.csv", 96)),
            "validation": {"fraction": 0.25},
            "test": str(write_csv(tmp_path / "test.csv", 40, 1)),
            "max_length": 16,
        },
        "model": {"backbone": f"hf:{tiny}"},
        "optimizer": {"learning_rate": {"search": "loguniform", "min": 1e-3, "max": 3e-2}},
        "train": {"epochs": 2, "batch_size": 16},
        "tune": {"trials": 2, "final_seeds": 0, "advise": False},
    }


@pytest.fixture(scope="module")
def fork_server():
    with contextlib.closing(ForkServer()) as server:
        yield server


@pytest.fixture
def shared_fork_server(fork_server, monkeypatch):
    """Let the searches of this process share a fork server, which takes seconds to start."""
    shared = SimpleNamespace(start=fork_server.start, close=lambda: None)
    monkeypatch.setattr(pipeline, "ForkServer", lambda: shared)


def leaderboard_rows(workdir):
    with open(workdir / "leaderboard.csv", newline="") as file:
        return list(csv.DictReader(file))


def events(workdir):
    return [json.loads(line) for line in (workdir / "journal.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("shared_fork_server")
def test_search_from_advised_values_to_final_seeds(raw, tmp_path):
    """With halving: advised values first, weights of the best trial only, a config that trains."""
    raw["tune"] = {"trials": 3, "final_seeds": 1, "halving": {"factor": 2, "min_epochs": 1}}
    raw["method"] = {"search": "choice", "values": [{"name": "head"}, {"name": "full"}]}
    raw["train"]["tensorboard"] = True
    path, workdir = tmp_path / "search.yaml", tmp_path / "search"
    path.write_text(yaml.safe_dump(raw))
    code, _, err = run_command("tune", f"--config={path}", f"--workdir={workdir}")
    assert code == 0, err
    assert "first trial: the choice of method: auto" in err
    rows = leaderboard_rows(workdir)
    assert sorted(row["trial"] for row in rows) == ["0000", "0001", "0002"]
    first = next(row for row in rows if row["trial"] == "0000")
    assert first["method"] == "full"  # the choice of the advisor for little text
    assert {row["epochs"] for row in rows} == {"1", "2"}
    best = rows[0]
    assert best["epochs"] == "2"
    trials_with_weights = {p.parts[-3] for p in (workdir / "trials").glob("*/seed_0/best")}
    assert trials_with_weights == {best["trial"]}
    with_checkpoints = {p.parts[-4] for p in (workdir / "trials").glob("*/seed_0/checkpoints/*")}
    assert with_checkpoints <= trials_with_weights
    for folder in (workdir / "trials").glob("*/seed_0"):
        data = load(folder / "config.yaml").data
        assert data.test is None  # trials never see the test split
        assert data.validation.seed == 0
    final = load(workdir / "final" / best["trial"] / "seed_1000" / "config.yaml")
    # The same rows are held out.
    assert final.train.seed == 1000 and final.data.validation.seed == 0
    config = load(workdir / "best.yaml")
    assert config.data.test is not None and config.tune is None
    assert config.method.name == best["method"]
    assert "test/accuracy: the best on 1 fresh seeds" in (workdir / "best.yaml").read_text()
    page = (workdir / "report.html").read_text()
    assert len(drawings(page)) >= 4 and "<script" not in page
    assert len(list((workdir / "tensorboard").glob("*/*tfevents*"))) == 3
    # Running the same command again trains nothing.
    expected_events = events(workdir)
    code, _, err = run_command("tune", f"--config={path}", f"--workdir={workdir}")
    assert code == 0 and events(workdir) == expected_events
    assert "best of 3 trials" in err


@pytest.mark.slow
def test_search_can_be_extended(raw, tmp_path):
    """More trials or time: finished trials stay, those that the time limit stopped resume."""
    raw["tune"].update(trials=1, final_seeds=1)
    workdir = tmp_path / "run"
    search(raw, workdir)
    first_events = events(workdir)
    finals = {p: p.stat().st_mtime for p in (workdir / "final").rglob("metrics.json")}
    raw["tune"]["trials"] = 2
    leaderboard = search(raw, workdir)
    assert len(leaderboard.rows) == 2 and len(finals) == 1
    assert events(workdir)[: len(first_events)] == first_events
    assert all(path.stat().st_mtime == time for path, time in finals.items())
    raw["tune"]["seed"] = 5
    with pytest.raises(UserError, match=r"another config \(only tune.trials, tune.time, "):
        search(raw, workdir)


@pytest.mark.usefixtures("shared_fork_server")
def test_failed_trials_are_reported_and_the_search_continues(raw, tmp_path):
    """An invalid value, a diverging run, and a length that the backbone does not support."""
    raw["optimizer"] = {
        "name": "sgd",
        "clip_norm": None,
        "learning_rate": {"search": "choice", "values": [1e-2, 1e30]},
    }
    raw["data"]["max_length"] = {"search": "choice", "values": [16, 10**6]}
    raw["tune"] = {"oracle": "grid", "advise": False, "final_seeds": 0}
    raw["train"]["epochs"] = {"search": "choice", "values": [2, -1]}
    leaderboard = search(raw, tmp_path / "run")
    rows = {
        (r["data.max_length"], r["optimizer.learning_rate"], r["train.epochs"]): r
        for r in leaderboard_rows(tmp_path / "run")
    }
    assert len(rows) == 8
    completed = rows["16", "0.01", "2"]
    assert completed["status"] == "COMPLETED" and completed["rank"] == "1"
    assert [r["status"] for r in rows.values()].count("FAILED") == 7
    assert (
        "train.epochs: input should be greater than or equal to 1"
        in rows["16", "0.01", "-1"]["reason"]
    )
    assert (
        "not finite" in rows["16", "1e+30", "2"]["reason"]
        or "nan" in rows["16", "1e+30", "2"]["reason"]
    )
    assert "positions for 24 tokens" in rows["1000000", "0.01", "2"]["reason"]
    assert "failed: " in leaderboard.to_text()


@pytest.mark.slow
def test_trial_out_of_memory_is_reported(tmp_path):
    """An image of 2000 pixels with patches of 4: attention over 250,000 patches."""
    folder = tmp_path / "images"
    write_folder(folder, 12, 0)
    raw = {
        "data": {
            "train": {"source": "images", "path": str(folder)},
            "validation": {"fraction": 0.25},
        },
        "model": {
            "backbone": f"hf:{ROOT / 'tests/golden/vision/vit'}",
            "image_size": {"search": "choice", "values": [16, 2000]},
        },
        "task": {"name": "image_classification"},
        "train": {"epochs": 1, "batch_size": 4},
        "tune": {"oracle": "grid", "final_seeds": 0, "advise": False},
    }
    search(raw, tmp_path / "run")
    rows = {row["model.image_size"]: row for row in leaderboard_rows(tmp_path / "run")}
    assert rows["16"]["status"] == "COMPLETED"
    assert rows["2000"]["status"] == "FAILED"
    assert "out of memory with 4 rows at once on a device" in rows["2000"]["reason"]
    assert "lower model.image_size" in rows["2000"]["reason"]


@pytest.mark.usefixtures("shared_fork_server")
def test_search_fails_with_the_reasons_if_all_trials_fail(raw, tmp_path):
    raw["data"]["max_length"] = {"search": "choice", "values": [1000, 2000]}
    del raw["optimizer"]
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(raw))
    code, _, err = run_command("tune", f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert code == 2 and "Traceback" not in err
    assert "tfft: tune: all 2 trials failed" in err
    assert "positions for 24 tokens. Received: 1000" in err


@pytest.fixture
def interrupted_config(raw, tmp_path):
    raw["tune"] = {"trials": 6, "final_seeds": 0, "advise": False, "halving": {"factor": 2}}
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def start_searcher(path, workdir, *flags):
    """Start the searcher in a separate process."""
    return Command("tune", f"--config={path}", f"--workdir={workdir}", *flags)


def child_pids(pid):
    try:
        paths = Path(f"/proc/{pid}/task").glob("*/children")
        return [int(child) for path in paths for child in path.read_text().split()]
    except OSError:
        return []


@pytest.mark.slow
def test_killed_searchers_and_trials_lose_no_result(interrupted_config, tmp_path):
    """SIGKILL at random moments, to the searcher and to a trial in turn."""
    workdir, generator, deaths = tmp_path / "run", random.Random(1), 0
    while True:
        searcher = start_searcher(interrupted_config, workdir, "--parallel=2")
        deadline = time.monotonic() + generator.uniform(6, 14)
        while deaths < 5 and searcher.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if deaths >= 5 or searcher.poll() is not None:
            code, err = searcher.wait(1200)
            break
        deaths += 1
        servers = child_pids(searcher.pid)  # the fork server, which starts the trials
        victims = (
            [*servers, *(p for server in servers for p in child_pids(server))] if deaths % 2 else []
        )
        if victims:
            os.kill(generator.choice(victims), signal.SIGKILL)
            deaths += 1
            time.sleep(generator.uniform(0, 6))
        searcher.kill()
    assert code == 0, err
    assert deaths >= 5
    rows = leaderboard_rows(workdir)
    assert len(rows) == 6 and {row["status"] for row in rows} == {"COMPLETED"}
    ends = [(e["trial"], e["notes"]["epochs"]) for e in events(workdir) if e["event"] == "end"]
    assert len(ends) == len(set(ends))  # no finished trial ran again


@pytest.mark.slow
def test_memory_and_disk_stay_bounded(raw, tmp_path):
    """Over 50 short trials."""
    raw["method"], raw["train"]["epochs"] = {"name": "head"}, 1
    raw["tune"] = {"trials": 50, "final_seeds": 0, "advise": False, "keep": 2}
    path, workdir = tmp_path / "search.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(raw))
    process = start_searcher(path, workdir)
    resident = {}
    while process.poll() is None:
        time.sleep(0.5)
        journal = workdir / "journal.jsonl"
        num_ended = journal.read_text().count('"event": "end"') if journal.is_file() else 0
        status = Path(f"/proc/{process.pid}/status")
        if status.is_file() and (found := re.search(r"VmRSS:\s+(\d+)", status.read_text())):
            resident[num_ended] = int(found[1]) / 1024
    assert process.poll() == 0 and len(leaderboard_rows(workdir)) == 50
    assert resident[49] - resident[5] < 20, resident  # MiB
    assert len(list((workdir / "trials").glob("*/seed_0/best"))) == 2
    assert not list((workdir / "trials").glob("*/seed_0/export"))


def test_second_search_in_a_directory_is_refused(interrupted_config, tmp_path):
    raw = yaml.safe_load(interrupted_config.read_text())
    raw["tune"]["trials"] = 200  # more than can finish
    interrupted_config.write_text(yaml.safe_dump(raw))
    searcher = start_searcher(interrupted_config, tmp_path / "run")
    try:
        searcher.wait_for((tmp_path / "run" / "trials").is_dir)  # nothing runs before it exists
        code, err = start_searcher(interrupted_config, tmp_path / "run").wait()
        assert code == 2 and "another process searches there" in err
        searcher.send_signal(signal.SIGINT)
        code, err = searcher.wait()
        assert code == 3, err
        assert "running trials are saved; run the same command to resume" in err
    finally:
        searcher.kill()


def test_other_directories_are_refused_and_unchanged(raw, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "thesis.txt").write_text("do not lose")
    with pytest.raises(UserError, match="is not empty and holds no search"):
        search(raw, workdir)
    assert (workdir / "thesis.txt").read_text() == "do not lose"
    raw["data"]["validation"] = None
    with pytest.raises(UserError, match="a search needs a validation split"):
        search(raw, tmp_path / "other")
    raw["tune"]["objective"] = "acuracy"
    with pytest.raises(UserError, match="did you mean 'accuracy'"):
        search(raw, tmp_path / "other")


def test_run_that_stops_after_some_epochs_resumes_exactly(raw, tmp_path):
    from tfft import train
    from tfft.config import parse
    from tfft.utils.errors import Interrupted

    raw["optimizer"], raw["tune"] = {"learning_rate": 1e-2}, None
    raw["export"] = {"enabled": False}
    config = parse(raw)
    expected = train.run(config, tmp_path / "whole")
    with pytest.raises(Interrupted, match="interrupted at step 5 of 10"):
        train.run(config, tmp_path / "parts", epochs=1)
    with pytest.raises(Interrupted, match="5 of 10 steps are trained"):
        train.run(config, tmp_path / "parts", epochs=1)
    resumed = train.run(config, tmp_path / "parts")
    assert resumed.metrics == expected.metrics
    assert tfft.load(tmp_path / "parts").metrics == expected.metrics


def shorten_timeouts():
    """Let the chief declare a silent worker lost soon."""
    from tfft.search import service

    service.LOST_SECONDS, service.HEARTBEAT_SECONDS = 8.0, 1.0


def test_chief_reassigns_the_trial_of_a_lost_worker(raw, tmp_path):
    """Over KerasTuner's service on loopback; a killed worker's trial is run by another."""
    raw["tune"] = {"trials": 3, "final_seeds": 0, "advise": False}
    path, workdir = tmp_path / "search.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(raw))
    environment = {
        "KERASTUNER_ORACLE_IP": "127.0.0.1",
        "KERASTUNER_ORACLE_PORT": str(find_free_ports(1)[0]),
    }

    def member(name):
        variables = {**environment, "KERASTUNER_TUNER_ID": name}
        arguments = ["tune", f"--config={path}", f"--workdir={workdir}"]
        return Command(*arguments, environment=variables, setup=shorten_timeouts)

    chief, killed_worker = member("chief"), member("worker-a")
    try:
        chief.wait_for((workdir / "trials").is_dir)
        killed_worker.kill()
        worker = member("worker-b")
        code, err = chief.wait()
        assert code == 0, err
        assert "worker-a is silent for 8 s; its trial goes to another worker" in err
        code, worker_err = worker.wait()
        assert code == 0, worker_err
        assert "worker-b: no trials are left" in worker_err
    finally:
        for process in (chief, killed_worker):
            process.kill()
    assert [row["status"] for row in leaderboard_rows(workdir)] == ["COMPLETED"] * 3
    ends = [e["trial"] for e in events(workdir) if e["event"] == "end"]
    assert sorted(ends) == ["0000", "0001", "0002"]


def test_incomplete_service_variables_are_an_error(raw, tmp_path, monkeypatch):
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    with pytest.raises(UserError, match="KERASTUNER_TUNER_ID: must be set"):
        search(raw, tmp_path / "run")
