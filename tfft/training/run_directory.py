"""The run directory: its lock, and the plain files in it that describe a run."""

import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tfft.config import Config, dump, read_saved
from tfft.config.plain_yaml import loads
from tfft.data import Datasets
from tfft.distribute import strategies
from tfft.evaluation.evaluate import Evaluation
from tfft.model import masks
from tfft.run import Run
from tfft.training.checkpoints import TrainingState
from tfft.training.phases import TrainingSchedule
from tfft.utils import console, files
from tfft.utils.errors import UserError
from tfft.utils.files import write_atomic
from tfft.utils.reading import printable, read_json
from tfft.utils.tensorflow_setup import package_version

FACTS = "run.json"


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Create the run directory if it does not exist, and lock it within the context.

    The lock is on the folder, so that no lock file remains; the kernel releases it when the process
    ends. Of several workers the first holds it.

    Raises:
        UserError: another process trains there, the folder holds something other than a run, or it
            cannot be written.
    """
    if not strategies.workers().is_chief:
        yield
        return
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir}: is a file; --workdir must be a folder")
    try:
        run_files = {"config.yaml", "config.given.yaml"}
        names = [path.name for path in workdir.iterdir()] if workdir.is_dir() else []
        # Hidden files do not count: a killed process may leave one that was not yet renamed.
        if not run_files & set(names) and any(not name.startswith(".") for name in names):
            raise UserError(f"{workdir}: is not empty and holds no run; choose another --workdir")
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{workdir}: cannot be written: {error.strerror}") from None
    with ExitStack() as stack:
        try:
            stack.enter_context(files.locked(workdir))
        except BlockingIOError:
            raise UserError(
                f"{workdir}: another process trains there; wait for it, or choose another --workdir"
            ) from None
        except OSError:
            pass  # a file system without locks on folders, such as NFS
        yield


def open_workdir(config: Config, workdir: Path) -> None:
    """Check that the run in the directory, if there is one, has this config.

    `describe` writes the config once the data and the model are valid. A run that failed before its
    first steps has nothing to lose, so the corrected config may use the folder.

    Raises:
        UserError: the directory holds a run with another config.
    """
    path = workdir / "config.yaml"
    if path.is_file() and not untrained(workdir):
        check_same(path, dump(config))


def untrained(workdir: Path) -> bool:
    """Return whether the directory holds a run that saved no checkpoint and logged no metrics."""
    metrics_log = workdir / "metrics.jsonl"
    return (
        (workdir / FACTS).is_file()
        and not (workdir / "metrics.json").is_file()
        and not any((workdir / "checkpoints").glob("step_*"))
        and not (metrics_log.is_file() and metrics_log.stat().st_size)
    )


def check_same(path: Path, text: str) -> None:
    """Check that the config file of a run directory equals a config.

    Args:
        path: the config file.
        text: the config as YAML.

    Raises:
        UserError: they differ; the message names up to five differences.
    """
    differences = _differences(read_saved(path), loads(text, "config"))
    if differences:
        raise UserError(
            f"{path.parent}: holds a run with another config ({'; '.join(differences[:5])}); "
            "choose another --workdir"
        )


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [d for k in keys for d in _differences(old.get(k), new.get(k), f"{path}.{k}")]
    return [] if old == new else [f"{path.lstrip('.')}: {old!r} there, {new!r} here"]


def describe(result: Run, data: Datasets, schedule: TrainingSchedule) -> None:
    """Write `config.yaml`, `mask.txt`, `run.json` and `bad_rows.txt`, and log the mask table."""
    write_atomic(result.workdir / "config.yaml", dump(result.config))
    mask_table = masks.table(schedule.mask, schedule.starts)
    console.log(mask_table)
    write_atomic(result.workdir / "mask.txt", mask_table + "\n")
    packages = (
        "tfft",
        "tensorflow",
        "keras",
        "transformers",
        "tokenizers",
        "tensorflow-text",
        "numpy",
    )
    facts = {
        "versions": {name: package_version(name) for name in packages},
        "python": platform.python_version(),
        "device": strategies.describe_devices(result.model.distribute_strategy),
        "git": _git_commit(),
        "backbone": result.backbone.fingerprint,
        "data": {
            "train": data.train.prepared.folder.name,
            "rows": {
                name: len(split)
                for name in ("train", "validation", "test")
                if (split := getattr(data, name)) is not None
            },
            "labels": list(data.labels),
        },
        "command": [printable(argument) for argument in sys.argv],
    }
    write_atomic(result.workdir / FACTS, json.dumps(facts, indent=1, ensure_ascii=False))
    bad_rows = result.workdir / "bad_rows.txt"
    # An earlier start, with other data, may have left one.
    bad_rows.unlink(missing_ok=True)
    if data.bad_rows:
        write_atomic(bad_rows, "\n".join(data.bad_rows) + "\n")


def read_facts(workdir: Path) -> dict[str, Any]:
    """Return the content of `run.json`: versions, device, commit, backbone, data and command."""
    return read_json(workdir / FACTS)


def finish(result: Run, evaluations: dict[str, Evaluation], state: TrainingState) -> None:
    """Write `metrics.json`, whose existence marks the run as finished."""
    metrics: dict[str, float] = {"steps": state.step, "best_step": state.best_step or state.step}
    for name, evaluation in evaluations.items():
        metrics |= evaluation.flat(name)
    # Written last and atomically: a run that is killed before is not taken for finished.
    write_atomic(result.workdir / "metrics.json", json.dumps(metrics, indent=1))


def contents(workdir: Path, exported: Path | None) -> str:
    """Return what a user opens or runs next, as lines of text.

    Args:
        workdir: run directory of a finished run.
        exported: folder of the exported version, if there is one.
    """
    flag = f"--workdir={shlex.quote(str(workdir))}"
    lines = [
        f"report   {workdir / 'report.html'}",
        f"weights  {workdir / 'best'}  (tfft predict {flag} --input=FILE)",
    ]
    if exported is not None:
        lines.append(f"export   {exported}  (tfft serve {flag})")
    return "\n".join([*lines, f"config   {workdir / 'config.yaml'}"])


def _git_commit() -> str | None:
    command = ["git", "rev-parse", "HEAD"]
    try:
        # No git, or no repository, is no error: the commit is left out.
        process = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() or None
