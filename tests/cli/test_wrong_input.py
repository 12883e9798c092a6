"""Wrong inputs of every kind to every command: each is refused in one line with exit code 2.

One process runs them all. Its memory stays below 1 GiB, libraries included, it writes nothing but
to the cache and the run directory, and what the user has is as it was.
"""

import hashlib
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.wrong_input import files
from tests.cli.wrong_input.commands import CASES, RUN
from tests.conftest import ROOT
from tfft.cli.__main__ import COMMANDS
from tfft.utils.files import locked

# Bytes of memory: with up to 512 MiB of mapped program files (see child.py), 1 GiB.
PEAK = 512 << 20
TIMEOUT = 400  # seconds for all commands
# What a command says of its work before it comes to the mistake.
PROGRESS = re.compile(r"(tokenis|inspect)(ing|ed) data\.|data: \d|batches: \d")

pytestmark = pytest.mark.timeout(TIMEOUT + 100)


class Outcome(NamedTuple):
    """What the commands answered, by name, and the user's files before and after them."""

    answers: dict
    before: dict
    after: dict


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    base = tmp_path_factory.mktemp("wrong")
    folders = {name: base / name for name in ("work", "home", "tmp", "cache")}
    for folder in folders.values():
        folder.mkdir()
    files.write_all(folders["work"])
    keras_settings = (
        folders["home"] / ".keras" / "keras.json"
    )  # Keras writes them if there are none
    keras_settings.parent.mkdir()
    keras_settings.write_text("{}")
    cases = {name: (case.arguments, case.stdin) for name, case in CASES.items()}
    (base / "commands.json").write_text(json.dumps(cases))
    environment = {
        **os.environ,
        "HOME": str(folders["home"]),
        "TMPDIR": str(folders["tmp"]),
        "TFFT_CACHE": str(folders["cache"]),
        # Keras imports matplotlib, which caches the fonts that it finds.
        "MPLCONFIGDIR": str(base / "matplotlib"),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    before = snapshot(folders)
    child = [sys.executable, "-m", "tests.cli.wrong_input.child"]
    with locked(folders["work"] / "locked"):
        done = subprocess.run(
            [*child, base / "commands.json", base / "answers.jsonl"],
            cwd=folders["work"],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (base / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    answers = {answer["name"]: answer for answer in map(json.loads, lines)}
    return Outcome(answers, before, snapshot(folders))


def snapshot(folders):
    """Return the kind, size, time of change and digest of everything but the cache."""
    entries = {}
    for name in ("work", "home", "tmp"):
        for path in sorted(folders[name].rglob("*")):
            status = path.lstat()
            kind, entry = stat.S_IFMT(status.st_mode), ()
            if kind == stat.S_IFREG:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                entry = status.st_size, status.st_mtime_ns, digest
            entries[str(path.relative_to(folders[name].parent))] = kind, *entry
    return entries


@pytest.mark.parametrize("name", CASES)
def test_one_line(name, outcome):
    answer, case = outcome.answers[name], CASES[name]
    text = answer["stderr"]
    assert answer["code"] == 2, text
    *progress, line = text.splitlines()
    assert line.startswith("tfft: ") and case.expected in line and len(line) < 1000, text
    assert all(map(PROGRESS.match, progress)), text
    assert "Traceback" not in text + answer["stdout"]


def test_every_command_is_among_at_least_a_hundred():
    assert len(CASES) >= 100
    assert {case.arguments[0] for case in CASES.values()} >= set(COMMANDS)


def test_memory(outcome):
    peaks = {name: answer["peak"] for name, answer in outcome.answers.items()}
    assert max(peaks.values()) < PEAK, {name: peak >> 20 for name, peak in peaks.items()}


def test_nothing_else_is_written_or_lost(outcome):
    before, after = outcome.before, outcome.after
    runs = f"work/{Path(RUN).parent}"
    assert {n: e for n, e in after.items() if not n.startswith(runs)} == {
        n: e for n, e in before.items() if not n.startswith(runs)
    }
    # A run directory that was there may be written to, but what it held stays.
    assert {n: e[-1] for n, e in before.items()}.items() <= {
        n: e[-1] for n, e in after.items()
    }.items()
