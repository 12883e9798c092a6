"""The road of a search: the advisor's choice first, what the oracle says after it, the best again.

WORKDIR/
  search.yaml, journal.jsonl     what is searched, what happened
  trials/0003/seed_0/            a run directory each (`tfft train`), with its log beside it
  final/0003/seed_1000/          the best again on fresh seeds, with the test split
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

from tfft.config import METRICS, dump, load, read
from tfft.config.plain_yaml import loads
from tfft.search import hparams, oracles, report, service
from tfft.search.fork_server import ForkServer
from tfft.search.leaderboard import Final, Leaderboard
from tfft.search.oracles import EPOCHS, Journal
from tfft.search.space import Space
from tfft.search.trials import GRACE, LOOK, Outcome, Runner
from tfft.training.best_checkpoint import LOWER_IS_BETTER
from tfft.utils import console
from tfft.utils.errors import Interrupted, UserError, nearest
from tfft.utils.files import open_to_append, write_atomic

FRESH = 1000  # the first seed of the runs after the search
GROWS = ("trials", "time", "final_seeds", "keep")  # what a search may be given more of


def search(
    raw: Mapping[str, Any], workdir: Path, parallel: int = 1, where: str = "config"
) -> Leaderboard | None:
    """Search as configured; everything that is found out stands in `workdir`.

    The same config in the same directory goes on where it was, or returns what was found; what is
    in `GROWS` may have changed.

    Args:
        raw: the YAML as nested mappings (`tfft.config.read`), with search spaces in it.
        parallel: trials at once on this machine; with several GPUs each gets one of its own.
        where: names the config in errors.

    Returns None in a worker of a search on several machines (`service`).

    Raises:
        UserError: something that the user can mend, or no trial came to an end.
        Interrupted: a signal asked for it.
    """
    space = Space(raw, where)
    objective, direction = objective_of(space)
    role = service.role()
    if role not in (None, "chief"):
        with closing(ForkServer()) as nursery:
            maximize, seeds = direction == "max", space.tune.seeds
            help_out(Runner(space, workdir, objective, maximize, seeds, nursery=nursery), role)
        return None
    with alone(workdir), closing(ForkServer()) as nursery:
        open_search(space, raw, workdir)
        began = time.monotonic()
        first = first_values(space, workdir, nursery)
        oracle = oracles.make(
            space.tune,
            space.hyperparameters(first),
            (objective, direction),
            space.plain.train.epochs,
            Journal(workdir / "journal.jsonl"),
            time.monotonic() - began,
        )
        runners = [
            Runner(space, workdir, objective, direction == "max", space.tune.seeds, gpu, nursery)
            for gpu in devices(parallel)
        ]
        board = Leaderboard(space, objective, direction)
        if role == "chief":
            service.serve(oracle, workdir, lambda: _told(oracle, runners[0], board))
        else:
            work(oracle, runners, board)
        board.check_some()
        best = board.best()
        write_best(space, best.values, workdir, board)
        board.finals = again(runners, board, first)
        runners[0].prune(set(board.kept(space.tune.keep)))
        write_best(space, best.values, workdir, board)
        board.write(workdir)
        report.write(board, workdir / "report.html")
        if space.plain.train.tensorboard:
            hparams.write(board, workdir / "tensorboard")
    console.log(board.text())
    return board


def objective_of(space: Space) -> tuple[str, str]:
    """The figure that is searched for, and whether more or less of it is better.

    Raises:
        UserError: the task has none of that name, or there is no validation split.
    """
    config, tune = space.plain, space.tune
    objective = tune.objective or config.train.metric
    if objective not in METRICS[config.task.name]:
        options = METRICS[config.task.name]
        raise UserError(
            f"{space.where}: tune.objective: {config.task.name} has {', '.join(options)}; received "
            f"{objective!r}{nearest(objective, options)}"
        )
    if config.data.validation is None:
        raise UserError(f"{space.where}: data.validation: a search needs a validation split")
    own = "min" if objective in LOWER_IS_BETTER else "max"
    return objective, tune.direction or own


def open_search(space: Space, raw: Mapping[str, Any], workdir: Path) -> None:
    """Write what is searched, or check that it is the same.

    Raises:
        UserError: the folder holds another search, or one whose files were changed.
    """
    path = workdir / "search.yaml"
    text = yaml.safe_dump(json.loads(json.dumps(raw)), sort_keys=False, allow_unicode=True)
    if path.is_file() and (workdir / "journal.jsonl").is_file():
        if _settled(read(path)) != _settled(loads(text, "config")):
            raise UserError(
                f"{workdir}: holds a search of another config (only tune.{', tune.'.join(GROWS)} "
                "may change); choose another --workdir"
            )
        write_atomic(path, text)
        return
    if path.is_file():  # a mistake ended it before the first trial: nothing is lost
        for name in ("advised.yaml", "advised.given.yaml"):
            (workdir / name).unlink(missing_ok=True)
    write_atomic(path, text)


def _settled(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A search without what may change while it goes on."""
    tune = raw.get("tune") or {}
    return {**raw, "tune": {k: v for k, v in tune.items() if k not in GROWS}}


def first_values(space: Space, workdir: Path, nursery: ForkServer) -> dict[str, Any]:
    """What the first trial takes: the advisor's choice, as far as the space has it."""
    if not space.tune.advise:
        return space.defaults
    path = workdir / "advised.yaml"
    if not path.is_file():
        raw = space.without()
        raw["method"] = {"name": "auto"}
        asked = workdir / "advised.given.yaml"
        write_atomic(asked, yaml.safe_dump(json.loads(json.dumps(raw)), sort_keys=False))
        console.log("first trial: what method: auto takes (looking at the data and the backbone)")
        if reason := _advice(asked, path, nursery):
            raise UserError(f"{space.where}: {reason}")
    advised = load(path)
    if all(d.path[0] != "method" for d in space.dimensions):
        settled = space.plain.method.name
        if settled != advised.method.name:  # rates of one method say nothing of another's
            console.log(f"method: auto would take {advised.method.name}, not {settled}: no advice")
            return space.defaults
    return space.values_of(advised)


def _advice(given: Path, output: Path, nursery: ForkServer) -> str:
    temporary = output.with_name(f".{output.name}")
    job = {"verb": "advise", "config": str(given), "output": str(temporary)}
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "advice.log"
        record.touch()  # where the fork server is lost, nothing writes it
        code = nursery.start(job, record, {}).wait()
        written = record.read_text(encoding="utf-8", errors="replace")
    if code:
        reasons = [line for line in written.splitlines() if line.startswith("tfft: ")]
        if reasons:
            return reasons[-1].removeprefix("tfft: ")
        return written[-300:].strip() or f"the advice ended with exit code {code}"
    os.replace(temporary, output)
    return ""


def help_out(runner: Runner, name: str) -> None:
    """Be a worker: take trials from the chief until it has no more.

    Raises:
        Interrupted: a signal asked for it; the chief gives the trial again.
    """
    console.log(f"{name}: taking trials from the chief")
    ended, failures = threading.Event(), list[BaseException]()
    client = service.Client(runner.workdir)

    def take() -> None:
        try:
            take_trials(client, runner, name, ended.is_set)
        except BaseException as error:  # handed to the main thread
            failures.append(error)

    thread = threading.Thread(target=take, name=name, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.2)
    except KeyboardInterrupt:
        ended.set()
        thread.join(GRACE + 1)
        raise Interrupted(f"{name}: interrupted; the same command goes on") from None
    if failures:
        raise failures[0]
    console.log(f"{name}: there are no more trials")


def work(oracle: Any, runners: Sequence[Runner], board: Leaderboard) -> None:
    """Let every runner take trials until there are no more.

    Raises:
        Interrupted: a signal asked for it; what ran is saved and goes on next time.
    """
    board.take(oracle)

    def one(runner: Runner, tuner: str, ended: Callable[[], bool]) -> None:
        take_trials(oracle, runner, tuner, ended, lambda: _told(oracle, runner, board))

    try:
        at_once(runners, one)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted after {len(board.rows)} trials; what ran is saved, and the same command "
            "goes on"
        ) from None


def at_once(
    runners: Sequence[Runner], one: Callable[[Runner, str, Callable[[], bool]], None]
) -> None:
    """Call `one` with each runner, a thread each, under a name and with what says whether to stop;
    the first error of one of them, or a signal, stops all."""
    ended, failures = threading.Event(), list[BaseException]()

    def call(runner: Runner, name: str) -> None:
        try:
            one(runner, name, ended.is_set)
        except BaseException as error:  # handed to the main thread
            failures.append(error)
            ended.set()

    threads = [
        threading.Thread(target=call, args=(runner, f"worker{at}"), name=f"worker{at}")
        for at, runner in enumerate(runners)
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(LOOK)
    except KeyboardInterrupt:
        ended.set()
        for thread in threads:
            thread.join()
        raise
    if failures:
        raise failures[0]


def take_trials(
    oracle: Any,
    runner: Runner,
    tuner: str,
    ended: Callable[[], bool],
    told: Callable[[], None] = lambda: None,
) -> None:
    """Run what the oracle gives until it has no more, or `ended`."""
    while not ended():
        trial = oracle.create_trial(tuner)
        if trial.status == TrialStatus.STOPPED:
            return
        if trial.status == TrialStatus.IDLE:
            time.sleep(0.2)
            continue
        values = {k: v for k, v in trial.hyperparameters.values.items() if "tuner/" not in k}
        epochs = int(trial.hyperparameters.values[EPOCHS])
        name = oracles.root(oracle, trial)
        with oracle.running(trial.trial_id):
            outcome = runner.trial(name, values, epochs, lambda: ended() or bool(oracle.over))
        if ended():
            return  # it goes on next time
        _end(oracle, trial, outcome)
        told()


def _end(oracle: Any, trial: Trial, outcome: Outcome) -> None:
    copy = Trial.from_state(trial.get_state())
    copy.status, copy.message = outcome.status, outcome.text()
    oracle.end_trial(copy)


def _told(oracle: Any, runner: Runner, board: Leaderboard) -> None:
    """A line for the trial that ended; losers leave the disk."""
    with board.lock:
        board.take(oracle)
        console.log(board.line())
        needed = {oracles.root(oracle, oracle.trials[name]) for name in oracle.needed()}
        runner.prune(needed | set(board.kept(board.space.tune.keep)))


def again(runners: Sequence[Runner], board: Leaderboard, first: Mapping[str, Any]) -> list[Final]:
    """The best, and the advisor's choice beside it, on fresh seeds with the test split.

    Raises:
        Interrupted: a signal asked for it; what ran is saved and goes on next time.
    """
    best, count = board.best(), board.space.tune.final_seeds
    if not count:
        return []
    finals = [Final("best", best.values, [])]
    folders = {"best": best.trial}
    if board.space.tune.advise and best.values != dict(first):
        finals.append(Final("advised", dict(first), []))
        folders["advised"] = next((r.trial for r in board.rows if r.values == first), "advised")
    seeds = range(FRESH, FRESH + count)
    left = deque((final, seed) for final in finals for seed in seeds)
    found: dict[tuple[str, int], Outcome] = {}

    def one(runner: Runner, name: str, ended: Callable[[], bool]) -> None:
        while not ended():
            try:
                final, seed = left.popleft()
            except IndexError:
                return
            at = f"{final.name}: fresh seed {seed} ({seed - FRESH + 1} of {count})"
            console.log(f"{at}: training")
            config = runner.config(board.space.config(final.values), seed, test=True)
            folder = runner.workdir / "final" / folders[final.name] / f"seed_{seed}"
            outcome = runner.run(config, folder, config.train.epochs, ended)
            if outcome.status == "FAILED":
                console.log(f"{at}: failed: {outcome.reason}")
            found[final.name, seed] = outcome

    try:
        at_once(runners, one)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted in the runs on fresh seeds; what ran is saved, and the same command goes "
            "on"
        ) from None
    return [replace(final, runs=[found[final.name, seed] for seed in seeds]) for final in finals]


def write_best(space: Space, values: Mapping[str, Any], workdir: Path, board: Leaderboard) -> None:
    """`best.yaml`, a plain config that `tfft train` runs, with what it reached above it."""
    lines = [f"# {line}".rstrip() for line in board.told_of_best()]
    write_atomic(workdir / "best.yaml", "\n".join(lines) + "\n" + dump(space.config(values)))


def devices(parallel: int) -> list[dict[str, str]]:
    """The environment of each of so many trials at once: its GPU, where there are several."""
    if parallel == 1:
        return [{}]
    import tensorflow as tf

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = len(tf.config.list_physical_devices("GPU"))
    names = visible.split(",") if visible and count else [str(at) for at in range(count)]
    if count < 2:
        return [{} for _ in range(parallel)]
    return [{"CUDA_VISIBLE_DEVICES": names[at % count]} for at in range(parallel)]


@contextmanager
def alone(workdir: Path) -> Iterator[None]:
    """Hold a search directory.

    Raises:
        UserError: another process does, it holds something that is no search, or it cannot be
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
