"""The pipeline of a search: advised values first, then the oracle's trials, then the best again.

WORKDIR/
  search.yaml, journal.jsonl     config and events of the search
  trials/0003/seed_0/            a run directory each (`tfft train`), with its log beside it
  final/0003/seed_1000/          the best config on fresh seeds, with the test split
  best.yaml, leaderboard.csv, report.html
"""

import fcntl
import json
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from keras_tuner.engine.trial import Trial, TrialStatus

from tfft.config import dump, load, read
from tfft.config.plain_yaml import loads
from tfft.search import hparams, oracles, report, service
from tfft.search.fork_server import ForkServer
from tfft.search.leaderboard import Final, Leaderboard
from tfft.search.oracles import EPOCHS, Journal
from tfft.search.space import Space
from tfft.search.trials import GRACE_SECONDS, POLL_SECONDS, Outcome, Runner
from tfft.utils import console
from tfft.utils.errors import Interrupted, UserError, nearest
from tfft.utils.files import open_to_append, write_atomic

FIRST_FINAL_SEED = 1000  # first seed of the final runs
# Keys of `tune` that a resumed search may change.
RESUMABLE_KEYS = ("trials", "time", "final_seeds", "keep")


def search(
    raw: Mapping[str, Any], workdir: Path, parallel: int = 1, where: str = "config"
) -> Leaderboard | None:
    """Run the search of a config; all results are written to `workdir`.

    The same config in the same directory resumes the search, or returns the results of a finished
    one. Only the keys of `tune` in `RESUMABLE_KEYS` may change in between.

    Args:
        raw: the YAML as nested mappings (`tfft.config.read`), with search spaces in it.
        workdir: directory of the search.
        parallel: number of parallel trials on this machine; with several GPUs each trial gets one.
        where: name of the config in errors.

    Returns:
        The leaderboard, or None in a worker of a search on several machines (`service`).

    Raises:
        UserError: the config or the directory is not usable, or no trial completed.
        Interrupted: a signal asked the search to stop.
    """
    space = Space(raw, where)
    objective, direction = objective_of(space)
    role = service.role()
    # A worker has no oracle: it takes its trials from the chief's.
    if role not in (None, "chief"):
        with closing(ForkServer()) as fork_server:
            maximize, seeds = direction == "max", space.tune.seeds
            run_worker(
                Runner(space, workdir, objective, maximize, seeds, fork_server=fork_server), role
            )
        return None
    with search_lock(workdir), closing(ForkServer()) as fork_server:
        open_search(space, raw, workdir)
        start = time.monotonic()
        advised_values = first_values(space, workdir, fork_server)
        oracle = oracles.build(
            space.tune,
            space.hyperparameters(advised_values),
            (objective, direction),
            space.plain.train.epochs,
            Journal(workdir / "journal.jsonl"),
            # The time of the advisor counts towards `tune.time`.
            time.monotonic() - start,
        )
        runners = [
            Runner(
                space, workdir, objective, direction == "max", space.tune.seeds, gpu, fork_server
            )
            for gpu in devices(parallel)
        ]
        leaderboard = Leaderboard(space, objective, direction)
        if role == "chief":
            service.serve(oracle, workdir, lambda: _after_trial(oracle, runners[0], leaderboard))
        else:
            work(oracle, runners, leaderboard)
        leaderboard.require_success()
        best = leaderboard.best()
        # Also before the final runs, which may be interrupted.
        write_best(space, best.values, workdir, leaderboard)
        leaderboard.finals = run_finals(runners, leaderboard, advised_values)
        runners[0].prune(set(leaderboard.best_names(space.tune.keep)))
        write_best(space, best.values, workdir, leaderboard)
        leaderboard.write(workdir)
        report.write(leaderboard, workdir / "report.html")
        if space.plain.train.tensorboard:
            hparams.write(leaderboard, workdir / "tensorboard")
    console.log(leaderboard.to_text())
    return leaderboard


def objective_of(space: Space) -> tuple[str, str]:
    """Return the metric to optimise, and its direction, `max` or `min`.

    Raises:
        UserError: the task has no such metric, or there is no validation split.
    """
    config, tune = space.plain, space.tune
    objective = tune.objective or config.train.metric
    options = config.task.metrics
    if objective not in options:
        raise UserError(
            f"{space.where}: tune.objective: must be one of {', '.join(options)} for "
            f"{config.task.name}. Received: {objective!r}{nearest(objective, options)}"
        )
    if config.data.validation is None:
        raise UserError(f"{space.where}: data.validation: a search needs a validation split")
    return objective, tune.direction or options[objective]


def open_search(space: Space, raw: Mapping[str, Any], workdir: Path) -> None:
    """Write the config of the search, or check that it has not changed.

    Raises:
        UserError: the folder holds another search, or one whose files were changed.
    """
    path = workdir / "search.yaml"
    text = yaml.safe_dump(json.loads(json.dumps(raw)), sort_keys=False, allow_unicode=True)
    if path.is_file() and (workdir / "journal.jsonl").is_file():
        if _fixed_part(read(path)) != _fixed_part(loads(text, "config")):
            raise UserError(
                f"{workdir}: holds a search of another config (only "
                f"tune.{', tune.'.join(RESUMABLE_KEYS)} may change); choose another --workdir"
            )
        write_atomic(path, text)
        return
    if path.is_file():  # stopped by an error before the first trial: start afresh
        for name in ("advised.yaml", "advised.given.yaml"):
            (workdir / name).unlink(missing_ok=True)
    write_atomic(path, text)


def _fixed_part(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a search without the keys that may change between its runs."""
    tune = raw.get("tune") or {}
    return {**raw, "tune": {k: v for k, v in tune.items() if k not in RESUMABLE_KEYS}}


def first_values(space: Space, workdir: Path, fork_server: ForkServer) -> dict[str, Any]:
    """Return the values of the first trial: the advisor's choice, clamped to the search space."""
    if not space.tune.advise:
        return space.defaults
    path = workdir / "advised.yaml"
    if not path.is_file():
        raw = space.without()
        raw["method"] = {"name": "auto"}
        request = workdir / "advised.given.yaml"
        write_atomic(request, yaml.safe_dump(json.loads(json.dumps(raw)), sort_keys=False))
        console.log(
            "first trial: the choice of method: auto (inspecting the data and the backbone)"
        )
        if error := _advice(request, path, fork_server):
            raise UserError(f"{space.where}: {error}")
    advised = load(path)
    if all(d.path[0] != "method" for d in space.dimensions):
        method = space.plain.method.name
        if method != advised.method.name:  # learning rates do not carry over between methods
            console.log(
                f"method: auto chooses {advised.method.name}, not {method}: its advice is not used"
            )
            return space.defaults
    return space.values_of(advised)


def _advice(request: Path, output: Path, fork_server: ForkServer) -> str:
    """Resolve `method: auto` in a separate process and write `output`; return the error, or ""."""
    # A temporary name, so that an incomplete file is never taken for the advice.
    temporary = output.with_name(f".{output.name}")
    job = {"verb": "advise", "config": str(request), "output": str(temporary)}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "advice.log"
        log.touch()  # must exist even if the fork server is lost before it writes the log
        code = fork_server.start(job, log, {}).wait()
        log_text = log.read_text(encoding="utf-8", errors="replace")
    if code:
        errors = [line for line in log_text.splitlines() if line.startswith("tfft: ")]
        if errors:
            return errors[-1].removeprefix("tfft: ")
        return log_text[-300:].strip() or f"the advisor ended with exit code {code}"
    os.replace(temporary, output)
    return ""


def run_worker(runner: Runner, name: str) -> None:
    """Take trials from the chief, as a worker, until it has no more.

    Raises:
        Interrupted: a signal asked the worker to stop; the chief gives the trial to another worker.
    """
    console.log(f"{name}: taking trials from the chief")
    stop, failures = threading.Event(), list[BaseException]()
    client = service.Client(runner.workdir)

    def take_all() -> None:
        try:
            take_trials(client, runner, name, stop.is_set)
        except BaseException as error:  # handed to the main thread
            failures.append(error)

    # Python delivers signals to the main thread, which therefore must not train.
    thread = threading.Thread(target=take_all, name=name, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.2)
    except KeyboardInterrupt:
        stop.set()
        thread.join(GRACE_SECONDS + 1)
        raise Interrupted(f"{name}: interrupted; run the same command to resume") from None
    if failures:
        raise failures[0]
    console.log(f"{name}: no trials are left")


def work(oracle: Any, runners: Sequence[Runner], leaderboard: Leaderboard) -> None:
    """Let all runners take trials until none is left.

    Raises:
        Interrupted: a signal asked the search to stop; running trials are saved and resume later.
    """
    leaderboard.update(oracle)

    def take(runner: Runner, name: str, should_stop: Callable[[], bool]) -> None:
        take_trials(
            oracle, runner, name, should_stop, lambda: _after_trial(oracle, runner, leaderboard)
        )

    try:
        run_parallel(runners, take)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted after {len(leaderboard.rows)} trials; running trials are saved; "
            "run the same command to resume"
        ) from None


def run_parallel(
    runners: Sequence[Runner], function: Callable[[Runner, str, Callable[[], bool]], None]
) -> None:
    """Call `function` for each runner in a separate thread.

    The first error of a call, or a signal, stops all of them.

    Args:
        runners: runners, one for each thread.
        function: (runner, name of the thread, function that returns whether to stop) -> None.
    """
    stop, failures = threading.Event(), list[BaseException]()

    def call(runner: Runner, name: str) -> None:
        try:
            function(runner, name, stop.is_set)
        except BaseException as error:  # handed to the main thread
            failures.append(error)
            stop.set()

    threads = [
        threading.Thread(target=call, args=(runner, f"worker{index}"), name=f"worker{index}")
        for index, runner in enumerate(runners)
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(POLL_SECONDS)
    except KeyboardInterrupt:
        stop.set()
        for thread in threads:
            thread.join()
        raise
    if failures:
        raise failures[0]


def take_trials(
    oracle: Any,
    runner: Runner,
    tuner: str,
    should_stop: Callable[[], bool],
    on_trial_end: Callable[[], None] = lambda: None,
) -> None:
    """Run trials of the oracle until it has no more or `should_stop` returns True.

    Args:
        oracle: oracle of the search, or a client of the chief's.
        runner: runner of the trials.
        tuner: name of this worker.
        should_stop: returns whether to stop.
        on_trial_end: called after each trial.
    """
    while not should_stop():
        trial = oracle.create_trial(tuner)
        if trial.status == TrialStatus.STOPPED:
            return
        if trial.status == TrialStatus.IDLE:
            time.sleep(0.2)
            continue
        values = {k: v for k, v in trial.hyperparameters.values.items() if "tuner/" not in k}
        epochs = int(trial.hyperparameters.values[EPOCHS])
        name = oracles.root_trial(oracle, trial)
        with oracle.running(trial.trial_id):
            outcome = runner.run_trial(
                name, values, epochs, lambda: should_stop() or bool(oracle.out_of_time)
            )
        if should_stop():
            return  # interrupted: the trial resumes with the next start
        _end_trial(oracle, trial, outcome)
        on_trial_end()


def _end_trial(oracle: Any, trial: Trial, outcome: Outcome) -> None:
    # A copy, because the oracle checks that its trial is still running.
    copy = Trial.from_state(trial.get_state())
    copy.status, copy.message = outcome.status, outcome.to_json()
    oracle.end_trial(copy)


def _after_trial(oracle: Any, runner: Runner, leaderboard: Leaderboard) -> None:
    """Log the trial that ended last and delete the weights that are no longer needed."""
    with leaderboard.lock:
        leaderboard.update(oracle)
        console.log(leaderboard.progress_line())
        needed_runs = {
            oracles.root_trial(oracle, oracle.trials[name]) for name in oracle.needed_trials()
        }
        runner.prune(needed_runs | set(leaderboard.best_names(leaderboard.space.tune.keep)))


def run_finals(
    runners: Sequence[Runner], leaderboard: Leaderboard, advised_values: Mapping[str, Any]
) -> list[Final]:
    """Train the best config, and the advised one if it differs, on fresh seeds with the test split.

    Args:
        runners: runners to train with, in parallel.
        leaderboard: leaderboard with at least one completed trial.
        advised_values: values of the first trial.

    Raises:
        Interrupted: a signal asked the search to stop; running trials are saved and resume later.
    """
    best, count = leaderboard.best(), leaderboard.space.tune.final_seeds
    if not count:
        return []
    finals = [Final("best", best.values, [])]
    folders = {"best": best.trial}
    if leaderboard.space.tune.advise and best.values != dict(advised_values):
        finals.append(Final("advised", dict(advised_values), []))
        # The folder has the name of the trial that had these values, if one had.
        folders["advised"] = next(
            (r.trial for r in leaderboard.rows if r.values == advised_values), "advised"
        )
    seeds = range(FIRST_FINAL_SEED, FIRST_FINAL_SEED + count)
    # `popleft` is atomic, so the threads share the queue without a lock.
    pending = deque((final, seed) for final in finals for seed in seeds)
    outcomes: dict[tuple[str, int], Outcome] = {}

    def run_pending(runner: Runner, name: str, should_stop: Callable[[], bool]) -> None:
        while not should_stop():
            try:
                final, seed = pending.popleft()
            except IndexError:
                return
            description = (
                f"{final.name}: fresh seed {seed} ({seed - FIRST_FINAL_SEED + 1} of {count})"
            )
            console.log(f"{description}: training")
            config = runner.config(leaderboard.space.config(final.values), seed, test=True)
            folder = runner.workdir / "final" / folders[final.name] / f"seed_{seed}"
            outcome = runner.run(config, folder, config.train.epochs, should_stop)
            if outcome.status == "FAILED":
                console.log(f"{description}: failed: {outcome.reason}")
            outcomes[final.name, seed] = outcome

    try:
        run_parallel(runners, run_pending)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted in the runs on fresh seeds; they are saved; run the same command to resume"
        ) from None
    return [replace(final, runs=[outcomes[final.name, seed] for seed in seeds]) for final in finals]


def write_best(
    space: Space, values: Mapping[str, Any], workdir: Path, leaderboard: Leaderboard
) -> None:
    """Write `best.yaml`, a config for `tfft train`, with its results in a comment at the top."""
    lines = [f"# {line}".rstrip() for line in leaderboard.describe_best()]
    write_atomic(workdir / "best.yaml", "\n".join(lines) + "\n" + dump(space.config(values)))


def devices(parallel: int) -> list[dict[str, str]]:
    """Return the environment of each of `parallel` trials: its GPU, where there are several."""
    if parallel == 1:
        return [{}]
    import tensorflow as tf

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = len(tf.config.list_physical_devices("GPU"))
    names = visible.split(",") if visible and count else [str(index) for index in range(count)]
    if count < 2:
        return [{} for _ in range(parallel)]
    return [{"CUDA_VISIBLE_DEVICES": names[index % count]} for index in range(parallel)]


@contextmanager
def search_lock(workdir: Path) -> Iterator[None]:
    """Hold the lock of a search directory.

    Raises:
        UserError: another process holds it, it holds something that is no search, or it cannot be
            written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in workdir.iterdir() if not path.name.startswith(".")}
        if "search.yaml" not in names and names - {"lock"}:
            raise UserError(
                f"{workdir}: is not empty and holds no search; choose another --workdir"
            )
        file = open_to_append(workdir / "lock")
    except OSError as error:
        raise UserError(f"{workdir}: cannot be written: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{workdir}: another process searches there") from None
        yield
