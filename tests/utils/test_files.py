"""Files and folders under temporary names: links, permissions, what a killed process leaves."""

import fcntl
import os
import stat
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tfft.data import prepared
from tfft.utils import files
from tfft.utils.errors import UserError


@pytest.fixture
def outside(tmp_path):
    path = tmp_path / "outside.txt"
    path.write_text("mine")
    return path


@pytest.fixture
def inside(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", ["metrics.json", ".metrics.json"])
def test_a_link_is_replaced_and_not_written_through(outside, inside, name):
    (inside / name).symlink_to(outside)
    files.write_atomic(inside / "metrics.json", "{}")
    assert outside.read_text() == "mine"
    assert [p.name for p in inside.iterdir()] == ["metrics.json"]
    assert (inside / "metrics.json").read_text() == "{}"


def test_weights_and_logs_follow_no_link_either(outside, inside):
    (inside / ".weights.safetensors").symlink_to(outside)
    assert not files.unused(inside / "weights.safetensors").is_symlink()
    (inside / "metrics.jsonl").symlink_to(outside)
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        files.open_to_append(inside / "metrics.jsonl")
    assert outside.read_text() == "mine"


def test_a_search_follows_no_link_either(outside, inside):
    from tfft.search.oracles import Journal
    from tfft.search.pipeline import alone

    (inside / "lock").symlink_to(outside)
    with pytest.raises(UserError, match="run: cannot be written: Too many levels"), alone(inside):
        pass
    (inside / "journal.jsonl").symlink_to(outside)
    with pytest.raises(OSError, match=r"journal\.jsonl"):
        Journal(inside / "journal.jsonl").write({"a": 1})
    assert outside.read_text() == "mine"


def test_a_write_that_fails_leaves_nothing(inside):
    (inside / "a.txt").write_text("before")
    with pytest.raises(UnicodeEncodeError):
        files.write_atomic(inside / "a.txt", "x" * 100_000 + "\ud800")
    assert [p.name for p in inside.iterdir()] == ["a.txt"]
    assert (inside / "a.txt").read_text() == "before"


def test_folders_of_the_cache_have_the_permissions_of_new_folders(tmp_path):
    before = os.umask(0o027)
    try:
        prepared.written(tmp_path / "cache" / "rows", lambda folder: {"rows": 1})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "cache" / "rows").stat().st_mode) == 0o750
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["rows"]


def hidden(folder):
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


KILLED = """
import os, signal, sys
from pathlib import Path
from tfft.utils import files
with files.temporary_folder(Path(sys.argv[1]), "export") as folder:
    (folder / "half").write_text("x")
    print(folder.name, flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        left = process.stdout.readline().strip()
        time.sleep(files._LOCK_DELAY)
        with files.temporary_folder(tmp_path, "export"):
            assert left in hidden(tmp_path)  # its process runs
    assert hidden(tmp_path) == [left]
    with files.temporary_folder(tmp_path, "other"):
        assert left in hidden(tmp_path)
    with files.temporary_folder(tmp_path, "export") as folder:
        assert hidden(tmp_path) == [folder.name]
    assert hidden(tmp_path) == []


def test_folders_of_others_stay(tmp_path, monkeypatch):
    """What only looks alike; a link; of another host until a day has passed."""
    foreign = tmp_path / ".export-00000000-00000000"
    for folder in (foreign, tmp_path / ".export-mine", tmp_path / ".export-models-00000000"):
        folder.mkdir()
    (tmp_path / f".export-{files.HOST}-00000001").symlink_to(tmp_path)
    long_ago = time.time() - 100
    os.utime(foreign, (long_ago, long_ago))
    before = hidden(tmp_path)
    with files.temporary_folder(tmp_path, "export"):
        pass
    assert hidden(tmp_path) == before
    monkeypatch.setattr(files, "_DAY", 50.0)
    with files.temporary_folder(tmp_path, "export"):
        pass
    assert hidden(tmp_path) == sorted(set(before) - {foreign.name})


def test_without_locks_a_folder_is_used_and_left_alone(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    left = tmp_path / f".export-{files.HOST}-00000001"
    left.mkdir()
    os.utime(left, (1e9, time.time() - 100))
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with files.temporary_folder(tmp_path, "export") as folder:
        (folder / "model").mkdir()
        os.rename(folder / "model", tmp_path / "1")
    assert hidden(tmp_path) == [left.name] and (tmp_path / "1").is_dir()
