"""A run that is killed at random moments and resumed ends as an undisturbed one."""

import json
import random
import time

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from tests.conftest import whole_config
from tests.processes import Command

KILLS = 100


@pytest.mark.slow  # tests/distribute/test_launcher.py kills a run twice
@pytest.mark.timeout(3 * 3600)
def test_killed_at_any_moment_a_run_resumes_bit_identically(tiny, tmp_path):
    """Kill it while it prepares rows, stores features, trains, saves, exports or reports."""
    config = whole_config(tiny, tmp_path)
    config |= {"method": {"name": "head"}, "export": {"enabled": True}}
    config["train"] |= {"epochs": 6, "cache_features": True, "checkpoint": {"every": "5 steps"}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))

    def start(folder):
        command = ["train", f"--config={path}", f"--workdir={folder / 'run'}"]
        return Command(*command, environment={"TFFT_CACHE": str(folder / "cache")})

    undisturbed = tmp_path / "whole"
    start_time = time.monotonic()
    code, log = start(undisturbed).wait()
    assert code == 0, log
    seconds = time.monotonic() - start_time

    generator, killed, rounds, positions = random.Random(0), 0, 0, []
    while killed < KILLS:
        rounds += 1
        folder = tmp_path / f"round_{rounds}"
        while True:
            command, limit = start(folder), generator.uniform(0.05, 1.0) * seconds
            start_time = time.monotonic()
            while command.poll() is None and time.monotonic() - start_time < limit:
                time.sleep(0.01)
            if killed == KILLS or command.poll() is not None:
                code, log = command.wait()
                assert code == 0, log
                break
            positions.append(progress(folder / "run"))
            command.kill()
            killed += 1
        assert_same_result(undisturbed, folder)
    print(f"{killed} kills in {rounds} runs: {', '.join(positions)}")


def progress(workdir):
    """Return the last milestone that a run has reached."""
    for name in ("report.html", "export/1", "checkpoints", "run.json"):
        if (workdir / name).exists():
            return f"after {name}"
    return "before run.json"


def assert_same_result(undisturbed, folder):
    """Compare weights, optimizer, metrics and file names; check that one version is published."""
    expected, actual = undisturbed / "run", folder / "run"
    checkpoints = (expected / "checkpoints").iterdir()
    files = ["best/weights.safetensors"]
    files += [f"checkpoints/{p.name}/state.safetensors" for p in checkpoints]
    for name in files:
        a, b = load_file(expected / name), load_file(actual / name)
        assert a.keys() == b.keys()
        for key, value in a.items():
            np.testing.assert_array_equal(value, b[key], err_msg=f"{name}: {key}")
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (expected, actual)]
    assert metrics[0] == metrics[1]
    names = [
        sorted(str(p.relative_to(base)) for p in base.rglob("*")) for base in (undisturbed, folder)
    ]
    assert names[0] == names[1]
    assert [p.name for p in (actual / "export").iterdir() if p.name.isdigit()] == ["1"]
