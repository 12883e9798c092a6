"""The notebooks of colab/ run from the first cell to the last, with small settings."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

NOTEBOOKS = sorted(path.name for path in (ROOT / "colab").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name):
    command = [sys.executable, ROOT / "colab" / "execute.py", "--small", f"--only={name[0]}"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-3000:]
    assert name in process.stdout
