"""Atomic writes and temporary folders: links, permissions, killed processes."""

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
def outside_file(tmp_path):
    path = tmp_path / "outside.txt"
    path.write_text("mine")
    return path


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", ["metrics.json", ".metrics.json"])
def test_a_link_is_replaced_and_not_written_through(outside_file, run_folder, name):
    (run_folder / name).symlink_to(outside_file)
    files.write_atomic(run_folder / "metrics.json", "{}")
    assert outside_file.read_text() == "mine"
    assert [p.name for p in run_folder.iterdir()] == ["metrics.json"]
    assert (run_folder / "metrics.json").read_text() == "{}"


def test_weights_and_logs_follow_no_link(outside_file, run_folder):
    (run_folder / ".weights.safetensors").symlink_to(outside_file)
    assert not files.unused(run_folder / "weights.safetensors").is_symlink()
    (run_folder / "metrics.jsonl").symlink_to(outside_file)
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        files.open_to_append(run_folder / "metrics.jsonl")
    assert outside_file.read_text() == "mine"


def test_a_search_follows_no_link(outside_file, run_folder):
    from tfft.search.oracles import Journal
    from tfft.search.pipeline import search_lock

    (run_folder / "lock").symlink_to(outside_file)
    with (
        pytest.raises(UserError, match="run: cannot be written: Too many levels"),
        search_lock(run_folder),
    ):
        pass
    (run_folder / "journal.jsonl").symlink_to(outside_file)
    with pytest.raises(OSError, match=r"journal\.jsonl"):
        Journal(run_folder / "journal.jsonl").write({"a": 1})
    assert outside_file.read_text() == "mine"


def test_a_failed_write_leaves_the_old_file_alone(run_folder):
    (run_folder / "a.txt").write_text("before")
    with pytest.raises(UnicodeEncodeError):
        files.write_atomic(run_folder / "a.txt", "x" * 100_000 + "\ud800")
    assert [p.name for p in run_folder.iterdir()] == ["a.txt"]
    assert (run_folder / "a.txt").read_text() == "before"


def test_folders_of_the_cache_have_the_permissions_of_new_folders(tmp_path):
    umask = os.umask(0o027)
    try:
        prepared.write_once(tmp_path / "cache" / "rows", lambda folder: {"rows": 1})
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "cache" / "rows").stat().st_mode) == 0o750
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["rows"]


def hidden_names(folder):
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


def test_the_folder_of_a_killed_process_is_removed_by_the_next(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        name = process.stdout.readline().strip()
        time.sleep(files._LOCK_DELAY)
        with files.temporary_folder(tmp_path, "export"):
            assert name in hidden_names(tmp_path)  # its process is still running
    assert hidden_names(tmp_path) == [name]
    with files.temporary_folder(tmp_path, "other"):
        assert name in hidden_names(tmp_path)
    with files.temporary_folder(tmp_path, "export") as folder:
        assert hidden_names(tmp_path) == [folder.name]
    assert hidden_names(tmp_path) == []


def test_other_folders_are_not_removed(tmp_path, monkeypatch):
    """These are similar names, links, and for a day the folders of another host."""
    foreign = tmp_path / ".export-00000000-00000000"
    for folder in (foreign, tmp_path / ".export-mine", tmp_path / ".export-models-00000000"):
        folder.mkdir()
    (tmp_path / f".export-{files.HOST}-00000001").symlink_to(tmp_path)
    long_ago = time.time() - 100
    os.utime(foreign, (long_ago, long_ago))
    names = hidden_names(tmp_path)
    with files.temporary_folder(tmp_path, "export"):
        pass
    assert hidden_names(tmp_path) == names
    monkeypatch.setattr(files, "_DAY", 50.0)
    with files.temporary_folder(tmp_path, "export"):
        pass
    assert hidden_names(tmp_path) == sorted(set(names) - {foreign.name})


def test_without_locks_a_recent_folder_is_not_removed(tmp_path, monkeypatch):
    def raise_unsupported(*_):
        raise OSError(95, "Operation not supported")

    recent = tmp_path / f".export-{files.HOST}-00000001"
    recent.mkdir()
    os.utime(recent, (1e9, time.time() - 100))
    monkeypatch.setattr(fcntl, "flock", raise_unsupported)
    with files.temporary_folder(tmp_path, "export") as folder:
        (folder / "model").mkdir()
        os.rename(folder / "model", tmp_path / "1")
    assert hidden_names(tmp_path) == [recent.name] and (tmp_path / "1").is_dir()
