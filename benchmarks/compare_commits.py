"""Compares two commits of this repository to the bit, on one machine.

    python benchmarks/compare_commits.py OLD NEW [--cases=full,lora] [--keep=FOLDER]
    python benchmarks/compare_commits.py --list

Each commit is checked out into a temporary `git worktree`. Both run the same cases
(`compare_cases.py`) on the same bytes, on the CPU with deterministic ops: 30 steps undisturbed, and
again resumed from a checkpoint in the middle of an epoch. Compared to the bit are weights,
optimizer state, seeds, logs, metrics with their intervals, thresholds, mask tables, and the
signatures of exports with their answers. A rise in traces or in host syncs is a difference, and so
is peak memory that rises by more than 10 %. Config keys and names that differ between the versions
are listed in `compare_cases.py`.

Uncommitted changes do not count. The exit code is 0 where all is identical, 1 where something
differs or a case fails, 2 for a wrong argument, 3 after Ctrl-C.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import compare_cases as cases
import numpy as np

SHOWN = 3  # differences of a case that are printed
# Cost that is compared -> the rise that is tolerated.
COSTS = {"traces": 0.0, "syncs per 100 steps": 0.0, "peak MiB": 0.1}
SIDES = ("old", "new")


@dataclass
class Record:
    """What a case computed on one commit.

    Attributes:
        arrays: weights, optimizer state and answers by name.
        values: numbers, strings and lists by name; `error` where the case failed.
        costs: traces, host syncs, peak memory, seconds; None where it could not be counted.
    """

    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    costs: Mapping[str, float | None] = field(default_factory=dict)


def compare(
    old: Record, new: Record, names: tuple[tuple[str, str], ...] = cases.RECORD_NAMES
) -> list[str]:
    """Return the differences between two records of a case, one line each: arrays first.

    Arrays are compared by dtype, shape and bytes, so NaN equals NaN, and 0.0 differs from -0.0.
    A case that failed is never identical.

    Args:
        names: regular expressions and replacements for names that were changed on purpose.
    """
    errors = zip(SIDES, (old, new), strict=True)
    failures = [
        f"fails in {side}: {r.values['error']}" for side, r in errors if "error" in r.values
    ]
    if failures:
        return failures
    lines = []
    for kind in ("arrays", "values"):
        before = {cases.renamed(k, names): v for k, v in getattr(old, kind).items()}
        after = {cases.renamed(k, names): v for k, v in getattr(new, kind).items()}
        for name in [*before, *(name for name in after if name not in before)]:
            if name not in after:
                lines.append(f"{name}: only in old")
            elif name not in before:
                lines.append(f"{name}: only in new")
            elif difference := _difference(before[name], after[name]):
                lines.append(f"{name}: {difference}")
    return [*lines, *_risen(old.costs, new.costs)]


def _difference(old: Any, new: Any) -> str:
    """Return how two values differ; empty where they are identical."""
    if not isinstance(old, np.ndarray):
        return "" if json.dumps(old) == json.dumps(new) else f"{old!r} -> {new!r}"
    strings = old.dtype.kind == new.dtype.kind == "S"  # whose dtype holds the longest's length
    if old.shape != new.shape or (old.dtype != new.dtype and not strings):
        return f"{old.dtype}{list(old.shape)} -> {new.dtype}{list(new.shape)}"
    if strings:
        pairs = enumerate(zip(old.ravel().tolist(), new.ravel().tolist(), strict=True))
        return next((f"{a!r} -> {b!r} at {index}" for index, (a, b) in pairs if a != b), "")
    if old.tobytes() == new.tobytes():
        return ""
    before, after = old.astype(np.float64), new.astype(np.float64)
    changed = ~((before == after) | (np.isnan(before) & np.isnan(after)))
    if not changed.any():
        return "differs in the sign of a zero or the bits of a NaN"
    largest = np.abs(before - after)[changed].max()
    return f"max abs difference {largest:.3g}, {changed.sum():,} of {changed.size:,} elements"


def _risen(old: Mapping[str, float | None], new: Mapping[str, float | None]) -> list[str]:
    """Return the costs that are higher in the new record, beyond their tolerance."""
    lines = []
    for name, tolerance in COSTS.items():
        before, after = old.get(name), new.get(name)
        if before is not None and after is not None and after > before * (1 + tolerance):
            lines.append(f"{name}: {before:g} -> {after:g}")
    return lines


def resumes_exactly(record: Record) -> bool | None:
    """Return whether the resumed run ended as the undisturbed run; None where it has only one."""
    prefix = "undisturbed/"
    whole = {k.removeprefix(prefix): v for k, v in record.arrays.items() if k.startswith(prefix)}
    if not whole:
        return None
    return all(
        not _difference(value, record.arrays.get(f"resumed/{name}", np.zeros(0)))
        for name, value in whole.items()
    )


def load(folder: Path, name: str) -> Record:
    """Return the record of a case that the runner wrote."""
    described = json.loads((folder / f"{name}.json").read_text())
    with np.load(folder / f"{name}.npz") as file:
        arrays = {key: file[key] for key in described["arrays"]}
    return Record(arrays, described["values"], described["costs"])


# --- commits and processes ---


def _git(*arguments: str) -> str:
    root = Path(__file__).resolve().parent
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _commit(revision: str) -> str:
    """Return the hash of a revision, for argparse."""
    try:
        return _git("rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}")
    except subprocess.CalledProcessError:
        raise argparse.ArgumentTypeError(f"no such commit: {revision!r}") from None


def _names(text: str) -> list[str]:
    """Return names of cases that are separated by commas, for argparse."""
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in cases.CASES]:
        known = ", ".join(cases.CASES)
        raise argparse.ArgumentTypeError(f"must be of {known}. Received: {', '.join(unknown)}")
    return names


@contextmanager
def _worktree(commit: str, folder: Path) -> Iterator[Path]:
    """Check a commit out; remove the worktree at the end."""
    try:
        _git("worktree", "add", "--detach", str(folder), commit)
        yield folder
    finally:
        with suppress(subprocess.CalledProcessError):  # it was not added
            _git("worktree", "remove", "--force", "--force", str(folder))


def _run(
    worktree: Path, inputs: Path, out: Path, names: Sequence[str]
) -> Generator[str, None, None]:
    """Run cases on a commit; yield each one's name once its record is written.

    Raises:
        RuntimeError: the runner ended before the last of them.
    """
    out.mkdir()
    environment = {
        **{k: v for k, v in os.environ.items() if k != "TF_CONFIG"},
        "PYTHONPATH": str(worktree),
        "PYTHONHASHSEED": "0",
        "TFFT_CACHE": str(out / "cache"),
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # One thread while libraries are imported, so that the runner may fork.
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    script = Path(__file__).resolve().parent / "compare_runner.py"
    command = [sys.executable, str(script), f"--inputs={inputs}", f"--out={out}", *names]
    with open(out / "runner.err.txt", "w") as errors:
        process = subprocess.Popen(
            command,
            cwd=worktree,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # a group with its forks, which are ended together
        )
    try:
        yield from (line.strip() for line in process.stdout)
        if process.wait() != 0:
            tail = (out / "runner.err.txt").read_text(errors="replace").splitlines()[-3:]
            raise RuntimeError(f"the runner ended with exit code {process.returncode}: {tail}")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


# --- the command ---


def _table(records: Mapping[str, Mapping[str, Record]]) -> str:
    """Return traces, host syncs, peak memory and seconds of both commits as text."""
    columns = [*COSTS, "seconds"]
    rows = [("case", *(f"{c} {side}" for c in columns for side in SIDES), "resumes exactly")]
    for name in records["new"]:
        both = [records[side][name] for side in SIDES]
        costs = [record.costs.get(c) for c in columns for record in both]
        shown = ["-" if cost is None else f"{cost:g}" for cost in costs]
        exact = [{None: "-", True: "yes", False: "no"}[resumes_exactly(r)] for r in both]
        rows.append((name, *shown, " ".join(dict.fromkeys(exact))))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(lines)


def _compare_commits(commits: Sequence[str], names: Sequence[str], folder: Path) -> bool:
    """Run and compare; print as it goes. Return whether all cases are identical."""
    inputs = folder / "inputs"
    cases.write_inputs(inputs)
    records: dict[str, dict[str, Record]] = {side: {} for side in SIDES}
    identical = True
    with ExitStack() as stack:
        for side, commit in zip(SIDES, commits, strict=True):
            began = time.monotonic()
            worktree = stack.enter_context(_worktree(commit, folder / f"worktree_{side}"))
            print(f"{side}: {_git('log', '-1', '--format=%h %s', commit)}", flush=True)
            running = stack.enter_context(closing(_run(worktree, inputs, folder / side, names)))
            for name in running:
                record = records[side][name] = load(folder / side, name)
                line = f"  {name:<14} {record.costs['seconds']:5.0f} s"
                if side == "new":
                    lines = compare(records["old"][name], record)
                    identical &= not lines
                    (folder / f"{name}.txt").write_text("\n".join(lines))
                    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
                    line += "  " + ("\n    ".join([*lines[:SHOWN], *more]) or "identical")
                elif "error" in record.values:
                    line += f"  fails: {record.values['error']}"
                print(line, flush=True)
            print(f"  {'all':<14} {time.monotonic() - began:5.0f} s", flush=True)
    print(f"\n{_table(records)}")
    return identical


def main() -> int:
    """Parse the arguments, compare, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", nargs="?", type=_commit, help="commit, branch or tag")
    parser.add_argument("new", nargs="?", type=_commit, help="commit, branch or tag")
    parser.add_argument("--cases", type=_names, default=list(cases.CASES), help="default: all")
    parser.add_argument("--list", action="store_true", help="list the cases and exit")
    parser.add_argument("--keep", type=Path, help="keep runs, records and all differences here")
    flags = parser.parse_args()
    if flags.list:
        for name, case in cases.CASES.items():
            print(f"{name:<14} {json.dumps(case.changes)}")
        return 0
    if flags.new is None:
        parser.error("two commits are required")
    if flags.keep is not None and flags.keep.exists() and any(flags.keep.iterdir()):
        parser.error(f"--keep: must be an empty folder. Received: {flags.keep}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    with ExitStack() as stack:
        folder = flags.keep
        if folder is None:
            temporary = tempfile.TemporaryDirectory(prefix="tfft-compare-")
            folder = Path(stack.enter_context(temporary))
        folder.mkdir(parents=True, exist_ok=True)
        try:
            same = _compare_commits((flags.old, flags.new), flags.cases, folder.resolve())
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 3
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
