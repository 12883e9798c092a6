"""Searches with real trials, each a process: what fails, what is killed, what is left behind."""

import csv
import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
import yaml

import tfft
from tests.conftest import ROOT, write_csv
from tests.console import command
from tests.processes import Command
from tests.tasks.test_image_runs import write_folder
from tfft.config import load
from tfft.distribute.launcher import _free_ports
from tfft.search.pipeline import search
from tfft.utils.errors import UserError


@pytest.fixture
def raw(tiny, tmp_path):
    """A search over the tiny BERT, seconds a trial."""
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


def lines(workdir):
    with open(workdir / "leaderboard.csv", newline="") as file:
        return list(csv.DictReader(file))


def events(workdir):
    return [json.loads(line) for line in (workdir / "journal.jsonl").read_text().splitlines()]


def test_a_search_from_the_first_trial_to_the_best_on_fresh_seeds(raw, tmp_path):
    """With halving: the advisor's choice first, weights of the best alone, a config that runs."""
    raw["tune"] = {"trials": 3, "final_seeds": 1, "halving": {"factor": 2, "min_epochs": 1}}
    raw["method"] = {"search": "choice", "values": [{"name": "head"}, {"name": "full"}]}
    raw["train"]["tensorboard"] = True
    path, workdir = tmp_path / "search.yaml", tmp_path / "search"
    path.write_text(yaml.safe_dump(raw))
    code, _, err = command("tune", f"--config={path}", f"--workdir={workdir}")
    assert code == 0, err
    assert "first trial: what method: auto takes" in err
    found = lines(workdir)
    assert sorted(row["trial"] for row in found) == ["0000", "0001", "0002"]
    first = next(row for row in found if row["trial"] == "0000")
    assert first["method"] == "full"  # which is what the advisor takes on little text
    assert {row["epochs"] for row in found} == {"1", "2"}
    best = found[0]
    assert best["epochs"] == "2"
    kept = {p.parts[-3] for p in (workdir / "trials").glob("*/seed_0/best")}
    assert kept == {best["trial"]}
    with_checkpoints = {p.parts[-4] for p in (workdir / "trials").glob("*/seed_0/checkpoints/*")}
    assert with_checkpoints <= kept
    for folder in (workdir / "trials").glob("*/seed_0"):
        data = load(folder / "config.yaml").data
        assert data.test is None  # trials never see it
        assert data.validation.seed == 0
    final = load(workdir / "final" / best["trial"] / "seed_1000" / "config.yaml")
    assert final.train.seed == 1000 and final.data.validation.seed == 0  # the same rows held out
    config = load(workdir / "best.yaml")
    assert config.data.test is not None and config.tune is None
    assert config.method.name == best["method"]
    assert "test/accuracy: the best on 1 fresh seeds" in (workdir / "best.yaml").read_text()
    page = (workdir / "report.html").read_text()
    assert page.count("<svg") >= 4 and "<script" not in page
    assert len(list((workdir / "tensorboard").glob("*/*tfevents*"))) == 3
    # The same command again trains nothing.
    began = events(workdir)
    code, _, err = command("tune", f"--config={path}", f"--workdir={workdir}")
    assert code == 0 and events(workdir) == began
    assert "best of 3 trials" in err


@pytest.mark.slow
def test_a_search_may_be_given_more(raw, tmp_path):
    """More trials, more time: what was found stays, what the time cut off goes on."""
    raw["tune"].update(trials=1, final_seeds=1)
    workdir = tmp_path / "run"
    search(raw, workdir)
    before = events(workdir)
    finals = {p: p.stat().st_mtime for p in (workdir / "final").rglob("metrics.json")}
    raw["tune"]["trials"] = 2
    board = search(raw, workdir)
    assert len(board.rows) == 2 and len(finals) == 1
    assert events(workdir)[: len(before)] == before
    assert all(path.stat().st_mtime == time for path, time in finals.items())
    raw["tune"]["seed"] = 5
    with pytest.raises(UserError, match=r"another config \(only tune.trials, tune.time, "):
        search(raw, workdir)


def test_what_fails_is_told_and_the_search_goes_on(raw, tmp_path):
    """A bad value, one that diverges, one that needs more memory than there is."""
    raw["optimizer"] = {
        "name": "sgd",
        "clip_norm": None,
        "learning_rate": {"search": "choice", "values": [1e-2, 1e30]},
    }
    raw["data"]["max_length"] = {"search": "choice", "values": [16, 10**6]}
    raw["tune"] = {"oracle": "grid", "advise": False, "final_seeds": 0}
    raw["train"]["epochs"] = {"search": "choice", "values": [2, -1]}
    board = search(raw, tmp_path / "run")
    rows = {
        (r["data.max_length"], r["optimizer.learning_rate"], r["train.epochs"]): r
        for r in lines(tmp_path / "run")
    }
    assert len(rows) == 8
    good = rows["16", "0.01", "2"]
    assert good["status"] == "COMPLETED" and good["rank"] == "1"
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
    assert "failed: " in board.text()


@pytest.mark.slow
def test_a_trial_that_needs_more_memory_than_there_is(tmp_path):
    """A picture of 2000 pixels with patches of 4: attention over 250,000 of them."""
    folder = tmp_path / "pictures"
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
    rows = {row["model.image_size"]: row for row in lines(tmp_path / "run")}
    assert rows["16"]["status"] == "COMPLETED"
    assert rows["2000"]["status"] == "FAILED"
    assert "out of memory with 4 rows at once on a device" in rows["2000"]["reason"]
    assert "lower model.image_size" in rows["2000"]["reason"]


def test_where_all_fail_it_ends_with_the_reasons(raw, tmp_path):
    raw["data"]["max_length"] = {"search": "choice", "values": [1000, 2000]}
    del raw["optimizer"]
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(raw))
    code, _, err = command("tune", f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert code == 2 and "Traceback" not in err
    assert "tfft: tune: all 2 trials failed" in err
    assert "positions for 24 tokens; received 1000" in err


@pytest.fixture
def killed_now_and_then(raw, tmp_path):
    raw["tune"] = {"trials": 6, "final_seeds": 0, "advise": False, "halving": {"factor": 2}}
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def started(path, workdir, *flags):
    """The searcher in a process of its own."""
    return Command("tune", f"--config={path}", f"--workdir={workdir}", *flags)


def children(pid):
    try:
        found = Path(f"/proc/{pid}/task").glob("*/children")
        return [int(child) for path in found for child in path.read_text().split()]
    except OSError:
        return []


@pytest.mark.slow
def test_killed_searchers_and_trials_lose_nothing(killed_now_and_then, tmp_path):
    """SIGKILL at random moments, to the searcher and to a trial in turn."""
    workdir, generator, deaths = tmp_path / "run", random.Random(1), 0
    while True:
        searcher = started(killed_now_and_then, workdir, "--parallel=2")
        until = time.monotonic() + generator.uniform(6, 14)
        while deaths < 5 and searcher.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        if deaths >= 5 or searcher.poll() is not None:
            code, err = searcher.wait(1200)
            break
        deaths += 1
        own = children(searcher.pid)  # the fork server; and the trials, which it starts
        victims = [*own, *(p for one in own for p in children(one))] if deaths % 2 else []
        if victims:
            os.kill(generator.choice(victims), signal.SIGKILL)
            deaths += 1
            time.sleep(generator.uniform(0, 6))
        searcher.kill()
    assert code == 0, err
    assert deaths >= 5
    found = lines(workdir)
    assert len(found) == 6 and {row["status"] for row in found} == {"COMPLETED"}
    ends = [(e["trial"], e["notes"]["epochs"]) for e in events(workdir) if e["event"] == "end"]
    assert len(ends) == len(set(ends))  # nothing that was finished was run again


@pytest.mark.slow
def test_the_searchers_memory_stays_flat_and_the_disk_small(raw, tmp_path):
    """Over 50 short trials."""
    raw["method"], raw["train"]["epochs"] = {"name": "head"}, 1
    raw["tune"] = {"trials": 50, "final_seeds": 0, "advise": False, "keep": 2}
    path, workdir = tmp_path / "search.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(raw))
    process = started(path, workdir)
    resident = {}
    while process.poll() is None:
        time.sleep(0.5)
        journal = workdir / "journal.jsonl"
        ended = journal.read_text().count('"event": "end"') if journal.is_file() else 0
        status = Path(f"/proc/{process.pid}/status")
        if status.is_file() and (found := re.search(r"VmRSS:\s+(\d+)", status.read_text())):
            resident[ended] = int(found[1]) / 1024
    assert process.poll() == 0 and len(lines(workdir)) == 50
    assert resident[49] - resident[5] < 20, resident  # MiB
    assert len(list((workdir / "trials").glob("*/seed_0/best"))) == 2
    assert not list((workdir / "trials").glob("*/seed_0/export"))


def test_only_one_searches_in_a_folder(killed_now_and_then, tmp_path):
    raw = yaml.safe_load(killed_now_and_then.read_text())
    raw["tune"]["trials"] = 200  # it will not be over
    killed_now_and_then.write_text(yaml.safe_dump(raw))
    first = started(killed_now_and_then, tmp_path / "run")
    try:
        first.wait_for((tmp_path / "run" / "trials").is_dir)  # before that nothing runs
        code, err = started(killed_now_and_then, tmp_path / "run").wait()
        assert code == 2 and "another process searches there" in err
        first.send_signal(signal.SIGINT)
        code, err = first.wait()
        assert code == 3, err
        assert "what ran is saved, and the same command goes on" in err
    finally:
        first.kill()


def test_other_searches_and_folders_are_left_alone(raw, tmp_path):
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


def test_a_run_that_stops_after_some_epochs_goes_on_as_if_it_had_not(raw, tmp_path):
    from tfft import train
    from tfft.config import parse
    from tfft.utils.errors import Interrupted

    raw["optimizer"], raw["tune"] = {"learning_rate": 1e-2}, None
    config = parse(raw)
    whole = train.run(config, tmp_path / "whole")
    with pytest.raises(Interrupted, match="interrupted at step 5 of 10"):
        train.run(config, tmp_path / "parts", epochs=1)
    with pytest.raises(Interrupted, match="5 of 10 steps are trained"):
        train.run(config, tmp_path / "parts", epochs=1)
    parts = train.run(config, tmp_path / "parts")
    assert parts.metrics == whole.metrics
    assert tfft.load(tmp_path / "parts").metrics == whole.metrics


def impatient():
    """Let a chief soon think a silent worker lost."""
    from tfft.search import service

    service.LOST, service.BEAT = 8.0, 1.0


def test_a_chief_and_workers_one_of_which_is_lost(raw, tmp_path):
    """Over KerasTuner's service on loopback; a killed worker's trial is run by another."""
    raw["tune"] = {"trials": 3, "final_seeds": 0, "advise": False}
    path, workdir = tmp_path / "search.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(raw))
    environment = {
        "KERASTUNER_ORACLE_IP": "127.0.0.1",
        "KERASTUNER_ORACLE_PORT": str(_free_ports(1)[0]),
    }

    def member(name):
        variables = {**environment, "KERASTUNER_TUNER_ID": name}
        arguments = ["tune", f"--config={path}", f"--workdir={workdir}"]
        return Command(*arguments, environment=variables, setup=impatient)

    chief, lost = member("chief"), member("worker-a")
    try:
        chief.wait_for((workdir / "trials").is_dir)
        lost.kill()
        other = member("worker-b")
        code, err = chief.wait()
        assert code == 0, err
        assert "worker-a is silent for 8 s; its trial is given again" in err
        code, told = other.wait()
        assert code == 0, told
        assert "worker-b: there are no more trials" in told
    finally:
        for process in (chief, lost):
            process.kill()
    assert [row["status"] for row in lines(workdir)] == ["COMPLETED"] * 3
    ends = [e["trial"] for e in events(workdir) if e["event"] == "end"]
    assert sorted(ends) == ["0000", "0001", "0002"]


def test_half_of_the_services_variables_are_a_mistake(raw, tmp_path, monkeypatch):
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    with pytest.raises(UserError, match="KERASTUNER_TUNER_ID: is not set"):
        search(raw, tmp_path / "run")
