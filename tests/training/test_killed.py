"""A run that is killed at random moments ends as one that was not."""

import json
import random
import time

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from tests.conftest import whole_config
from tests.processes import Command

QUICK, MANY = 1, 100


@pytest.mark.parametrize(
    "kills",
    [QUICK, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(3 * 3600)])],
)
def test_killed_at_any_moment(tiny, tmp_path, kills):
    """While it prepares rows, stores features, trains, saves, exports or reports."""
    config = whole_config(tiny, tmp_path)
    config |= {"method": {"name": "head"}, "export": {"enabled": True}}
    config["train"] |= {"epochs": 6, "cache_features": True, "checkpoint": {"every": "5 steps"}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))

    def start(folder):
        command = ["train", f"--config={path}", f"--workdir={folder / 'run'}"]
        return Command(*command, environment={"TFFT_CACHE": str(folder / "cache")})

    whole = tmp_path / "whole"
    began = time.monotonic()
    code, text = start(whole).wait()
    assert code == 0, text
    seconds = time.monotonic() - began

    generator, killed, rounds, at = random.Random(0), 0, 0, []
    while killed < kills:
        rounds += 1
        folder = tmp_path / f"round_{rounds}"
        while True:
            command, limit = start(folder), generator.uniform(0.05, 1.0) * seconds
            began = time.monotonic()
            while command.poll() is None and time.monotonic() - began < limit:
                time.sleep(0.01)
            if killed == kills or command.poll() is not None:
                code, text = command.wait()
                assert code == 0, text
                break
            at.append(place(folder / "run"))
            command.kill()
            killed += 1
        same_end(whole, folder)
    print(f"{killed} kills in {rounds} runs: {', '.join(at)}")


def place(workdir):
    """How far a run has come."""
    for name in ("report.html", "export/1", "checkpoints", "run.json"):
        if (workdir / name).exists():
            return f"after {name}"
    return "before run.json"


def same_end(whole, folder):
    """Compare weights, optimizer, metrics and published versions to the bit; find leftovers."""
    one, two = whole / "run", folder / "run"
    files = ["best/weights.safetensors"]
    files += [f"checkpoints/{p.name}/state.safetensors" for p in (one / "checkpoints").iterdir()]
    for name in files:
        a, b = load_file(one / name), load_file(two / name)
        assert a.keys() == b.keys()
        for key, value in a.items():
            np.testing.assert_array_equal(value, b[key], err_msg=f"{name}: {key}")
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (one, two)]
    assert metrics[0] == metrics[1]
    names = [sorted(str(p.relative_to(base)) for p in base.rglob("*")) for base in (whole, folder)]
    assert names[0] == names[1]
    assert [p.name for p in (two / "export").iterdir() if p.name.isdigit()] == ["1"]
