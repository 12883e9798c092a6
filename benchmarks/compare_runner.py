"""Runs cases on one commit and records what they computed; `compare_commits.py` starts it.

    PYTHONPATH=WORKTREE python benchmarks/compare_runner.py --inputs=FOLDER --out=FOLDER CASE ...

TensorFlow is imported once; each command then runs in a fork, so that it has a process of its own:
random state, logical devices, traces and peak memory are those of one command. tfft is reached by
its public face alone: the command line, the files of a run directory, and the SavedModel.
"""

import argparse
import importlib
import importlib.util
import json
import os
import re
import resource
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial, wraps
from pathlib import Path
from typing import Any

import compare_cases as cases
import keras
import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401 -- registers the ops of exported tokenizers
import transformers  # noqa: F401 -- imported before forking, for speed
from safetensors import safe_open

LIMIT = 600  # seconds for a command


def _is_editable(finder: Any) -> bool:
    return getattr(finder, "__module__", "").startswith("__editable__")


class Failed(Exception):
    """A command ended with an unexpected exit code, or a file is missing."""


def main() -> None:
    """Run the cases in order, writing `OUT/CASE.npz` and `OUT/CASE.json` for each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("cases", nargs="+")
    flags = parser.parse_args()
    # An editable install of another checkout would supply modules that this one does not have.
    sys.meta_path[:] = [f for f in sys.meta_path if not _is_editable(f)]
    tfft = importlib.import_module("tfft")
    if not Path(tfft.__file__).is_relative_to(Path.cwd().resolve()):
        sys.exit(f"tfft must be that of the worktree. Received: {tfft.__file__}")
    getattr(tfft, "train", None)  # loads its modules, where the attribute is a lazy import
    runner = Runner(flags.inputs, flags.out)
    for name in flags.cases:
        began = time.monotonic()
        try:
            arrays, values, costs = runner.record(name)
        except Exception as error:  # also of files that are missing or read differently
            arrays, values, costs = {}, {"error": f"{type(error).__name__}: {error}"}, {}
        costs["seconds"] = round(time.monotonic() - began, 1)
        np.savez(flags.out / f"{name}.npz", **arrays)
        text = json.dumps({"values": values, "costs": costs, "arrays": list(arrays)}, indent=1)
        (flags.out / f"{name}.json").write_text(text)
        print(name, flush=True)


class Runner:
    """Runs the commands of a commit and reads the files that they write."""

    def __init__(self, inputs: Path, out: Path):
        self._inputs, self._out = inputs, out
        modules = [name for name in cases.MODULES if importlib.util.find_spec(name)]
        self._module = modules[0]
        self._schema = json.loads(self._command("schema", "schema"))
        self._costs: dict[str, dict[str, Any]] = {}  # of the undisturbed runs

    def record(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, Any]]:
        """Run a case; return its arrays, its values and its costs by name.

        Raises:
            Failed: a command failed.
        """
        case = cases.CASES[name]
        whole, resumed = self._out / name / "undisturbed", self._out / name / "resumed"
        config = self._config(name)
        arrays: dict[str, np.ndarray] = {}
        values: dict[str, Any] = {}
        if case.interrupt:
            stop = _prepare(case, interrupt_at=cases.RESUME_AT - 1)
            self._command(f"{name}/interrupted", *_train(config, resumed), before=stop, code=3)
        else:
            self._undisturbed(name)
            _read_run(whole, "undisturbed", arrays, values)
            _copy_stopped(whole, resumed, cases.RESUME_AT)
        self._command(f"{name}/resumed", *_train(config, resumed), before=_prepare(case))
        _read_run(resumed, "resumed", arrays, values)
        if case.show:
            text = self._command(f"{name}/show", "show", f"--config={config}")
            _read_table(text, "show", values)
        if case.export:
            self._command(f"{name}/export", "export", f"--workdir={whole}")
            _read_export(whole, arrays, values)
        return arrays, values, dict(self._costs.get(name, {}))

    def _undisturbed(self, name: str) -> Path:
        """Train a case without a stop, once; return its run directory."""
        workdir = self._out / name / "undisturbed"
        if name not in self._costs:
            costs = self._out / name / "costs.json"
            before = _prepare(cases.CASES[name], costs)
            self._command(
                f"{name}/undisturbed", *_train(self._config(name), workdir), before=before
            )
            self._costs[name] = json.loads(costs.read_text())
        return workdir

    def _config(self, name: str) -> Path:
        """Write the config of a case in the keys of this commit."""
        case = cases.CASES[name]
        teacher = self._undisturbed(case.teacher) if case.teacher is not None else None
        config = cases.translate(cases.config(case, self._inputs, teacher), self._schema)
        path = self._out / name / "config.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(config, indent=1))  # JSON is YAML
        return path

    def _command(
        self,
        name: str,
        *arguments: str,
        before: Callable[[], Callable[[], None]] | None = None,
        code: int = 0,
    ) -> str:
        """Run `tfft ARGUMENTS` in a fork; return its standard output.

        Args:
            name: of its log files, below the folder of the results.
            before: called in the fork first; what it returns is called last.
            code: the expected exit code.

        Raises:
            Failed: it ended with another one, or not in time.
        """
        out, err = self._out / f"{name}.out.txt", self._out / f"{name}.err.txt"
        ended = _fork(lambda: _console(self._module, arguments, before), out, err)
        if ended != code:
            lines = [line for line in err.read_text(errors="replace").splitlines() if line.strip()]
            reason = lines[-1][:300] if lines else "no output"
            raise Failed(f"tfft {arguments[0]} ({name}): exit code {ended}: {reason}")
        return out.read_text()


def _train(config: Path, workdir: Path) -> tuple[str, ...]:
    return "train", f"--config={config}", f"--workdir={workdir}"


def _console(
    module: str, arguments: tuple[str, ...], before: Callable[[], Callable[[], None]] | None
) -> None:
    after = before() if before is not None else None
    sys.argv = ["tfft", *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        if after is not None:
            after()


def _fork(function: Callable[[], None], out: Path, err: Path) -> int:
    """Call a function in a forked process; return its exit code."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            for path, stream in ((out, 1), (err, 2)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            # A shell that starts a command in the background ignores SIGINT for it.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.alarm(LIMIT)
            function()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


# --- in the process of a command ---


def _prepare(
    case: cases.Case, costs: Path | None = None, interrupt_at: int | None = None
) -> Callable[[], Callable[[], None]]:
    """Return a function that sets a process up for a case.

    Args:
        costs: file for the traces, host syncs and peak memory of the command.
        interrupt_at: the step after which the process sends itself SIGINT.
    """

    def before() -> Callable[[], None]:
        if case.devices > 1:
            devices = [tf.config.LogicalDeviceConfiguration()] * case.devices
            cpu = tf.config.list_physical_devices("CPU")[0]
            tf.config.set_logical_device_configuration(cpu, devices)
        if case.static:
            # Batches have one shape on a TPU only: let the mirrored strategy pass for one.
            tf.distribute.TPUStrategy = tf.distribute.MirroredStrategy
        if interrupt_at is not None:
            _interrupt(interrupt_at)
        if costs is None:
            return lambda: None
        counts = Counts()
        return lambda: costs.write_text(json.dumps(counts.total()))

    return before


def _interrupt(step: int) -> None:
    """Send SIGINT to this process once the callbacks of a step are called."""
    original = keras.callbacks.CallbackList.on_train_batch_end
    sent = []

    def on_train_batch_end(self: Any, batch: int, logs: Any = None) -> None:
        if batch + 1 >= step and not sent:
            sent.append(step)
            signal.raise_signal(signal.SIGINT)
        original(self, batch, logs)

    keras.callbacks.CallbackList.on_train_batch_end = on_train_batch_end


class Counts:
    """Counts traces of `tf.function` and host syncs from its construction on.

    A trace is a call of the Python function behind a `tf.function`. A host sync is a read of an
    eager tensor's value through `numpy()`, `float()`, `int()`, `bool()` or `__array__`; reads
    through the buffer protocol, as by `np.array(tensor)`, are not counted. Syncs are those between
    `on_train_begin` and `on_train_end` of Keras' callbacks.
    """

    def __init__(self) -> None:
        self.traces, self.syncs = 0, 0
        self._in_training: list[int] = []
        self._count_traces()
        self._count_syncs()

    def total(self) -> dict[str, float | None]:
        """Return the counts, and the peak memory in MiB."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        unit = 2**20 if sys.platform == "darwin" else 2**10
        syncs = self._in_training[1] - self._in_training[0] if len(self._in_training) > 1 else None
        return {
            "traces": self.traces,
            "syncs per 100 steps": None if syncs is None else round(100 * syncs / cases.STEPS),
            "peak MiB": round(peak / unit),
        }

    def _count_traces(self) -> None:
        original = tf.function

        def function(func: Any = None, *args: Any, **kwargs: Any) -> Any:
            if func is None:
                return lambda inner: function(inner, *args, **kwargs)

            @wraps(func)
            def traced(*values: Any, **named: Any) -> Any:
                self.traces += 1
                return func(*values, **named)

            return original(traced, *args, **kwargs)

        tf.function = function

    def _count_syncs(self) -> None:
        tensor = type(tf.constant(0)).__mro__[1]
        read = tensor._numpy

        def _numpy(value: Any) -> Any:
            self.syncs += 1
            return read(value)

        tensor._numpy = _numpy
        callbacks = keras.callbacks.CallbackList
        for name in ("on_train_begin", "on_train_end"):
            setattr(callbacks, name, self._marked(getattr(callbacks, name)))

    def _marked(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def marked(*args: Any, **kwargs: Any) -> Any:
            self._in_training.append(self.syncs)
            return method(*args, **kwargs)

        return marked


# --- run directories ---


def _copy_stopped(finished: Path, workdir: Path, step: int) -> None:
    """Copy a finished run as if it had been killed after the checkpoint of a step."""
    shutil.copytree(finished, workdir)
    checkpoints = dict(_checkpoints(workdir))
    if step not in checkpoints:
        raise Failed(f"{finished}: no checkpoint of step {step}")
    for number, path in checkpoints.items():
        if number > step:
            shutil.rmtree(path.parent)
    metrics = workdir / "metrics.json"
    if json.loads(metrics.read_text())["best_step"] > step:
        # They are of a later step: the resumed run must write them again.
        (workdir / "best" / "weights.safetensors").unlink()
    for name in ("metrics.json", "report.html", "README.md", "MODEL_CARD.md"):
        (workdir / name).unlink(missing_ok=True)


def _checkpoints(workdir: Path) -> list[tuple[int, Path]]:
    """Return (step, file) of each checkpoint, in order."""
    files = (workdir / "checkpoints").glob("*/state.safetensors")
    return sorted((int(re.sub(r"\D", "", path.parent.name)), path) for path in files)


def _read_run(
    workdir: Path, kind: str, arrays: dict[str, np.ndarray], values: dict[str, Any]
) -> None:
    """Add the entries of a finished run to a record, each below `kind`."""
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        for name in sorted(set(entry) - {"time", "step"}):
            values[f"{kind}/log/{entry['step']}/{name}"] = entry[name]
    metrics = json.loads((workdir / "metrics.json").read_text())
    if metrics["steps"] != cases.STEPS:
        raise Failed(f"{workdir}: trained {metrics['steps']} steps instead of {cases.STEPS}")
    values |= {f"{kind}/metrics/{name}": value for name, value in metrics.items()}
    data = json.loads((workdir / "run.json").read_text())["data"]
    values |= {f"{kind}/data/{name}": data[name] for name in ("rows", "labels")}
    description = json.loads((workdir / "best" / "model.json").read_text())
    fitted = description.get("fitted") or {}
    values[f"{kind}/thresholds"] = description.get("thresholds") or fitted.get("thresholds")
    _read_table((workdir / "mask.txt").read_text(), f"{kind}/mask", values)
    state = _checkpoints(workdir)[-1][1]
    for name, path in (("state", state), ("best", workdir / "best" / "weights.safetensors")):
        with safe_open(path, framework="numpy") as file:
            for key in sorted(file.keys(), key=_by_number):
                array = file.get_tensor(key)
                # bfloat16, which npz files cannot hold, is exact in float32.
                exact = array.astype(np.float32) if array.dtype.kind == "V" else array
                arrays[f"{kind}/{name}/{key}"] = exact


def _by_number(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts `optimizer:2` before `optimizer:10`."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", name)]


def _read_table(text: str, kind: str, values: dict[str, Any]) -> None:
    """Add the rows of a mask table to a record: stage, counts, learning-rate factors."""
    inside = False
    for line in text.splitlines():
        cells = re.split(r"\s{2,}", line.strip())
        if inside and len(cells) > 1:
            values[f"{kind}/{cells[0]}"] = cells[1:]
        inside = (inside or cells[:2] == ["stage", "variables"]) and cells[0] != "total"
    if f"{kind}/total" not in values:
        raise Failed(f"{kind}: no mask table")


def _read_export(workdir: Path, arrays: dict[str, np.ndarray], values: dict[str, Any]) -> None:
    """Add the signatures of an export and their answers to a record."""
    folder = workdir.parent
    answer = partial(_answer, workdir, folder / "answers")
    if _fork(answer, folder / "answers.out.txt", folder / "answers.err.txt"):
        raise Failed(f"{workdir}: the export does not answer; see {folder / 'answers.err.txt'}")
    with np.load(folder / "answers.npz") as file:
        arrays |= {f"export/{name}": file[name] for name in file.files}
    signatures = json.loads((folder / "answers.json").read_text())
    values |= {f"export/{name}": value for name, value in signatures.items()}


def _answer(workdir: Path, out: Path) -> None:
    """Load an export, and answer fixed rows with each of its signatures."""
    loaded = tf.saved_model.load(str(next(workdir.glob("export/*/saved_model.pb")).parent))
    raw = loaded.signatures["serving_default"].structured_input_signature[1]
    rows = {name: _raw_rows(name) for name in raw}
    arrays, described = {}, {}
    for name, function in sorted(loaded.signatures.items()):
        inputs = function.structured_input_signature[1]
        answers = function(**{key: _input(spec, key, rows) for key, spec in inputs.items()})
        for kind, specs in (("inputs", inputs), ("outputs", function.structured_outputs)):
            for key, spec in sorted(specs.items()):
                described[f"{name}/{kind}/{key}"] = f"{spec.dtype.name} {spec.shape}"
        for key, value in sorted(answers.items()):
            array = value.numpy()
            arrays[f"{name}/{key}"] = array.astype("S") if array.dtype == object else array
    np.savez(out.with_suffix(".npz"), **arrays)
    out.with_suffix(".json").write_text(json.dumps(described))


def _raw_rows(column: str) -> list[bytes]:
    if column == "image":
        pixels = np.random.default_rng(1).integers(0, 256, (3, 20, 33, 3)).astype(np.uint8)
        images = [cases.png(image) for image in pixels]
        return [*images, images[0][:60], b"no image"]
    return [text.encode() for text in cases.TEXTS]


def _input(spec: tf.TensorSpec, name: str, rows: Mapping[str, list[bytes]]) -> tf.Tensor:
    """Return fixed values for an input of a signature."""
    if spec.dtype == tf.string:
        return tf.constant(rows[name] if name in rows else _examples(rows))
    generator = np.random.default_rng(0)
    shape = [3, *spec.shape[1:]]
    if spec.dtype.is_floating:
        return tf.constant(generator.uniform(-1, 1, shape), spec.dtype)
    # Token ids; a mask is 1 for the first tokens of a row; segments are 0.
    lengths = np.linspace(3, shape[1], shape[0]).astype(int)[:, None]
    mask = np.arange(shape[1])[None, :] < lengths
    ids = generator.integers(5, len(cases.TOKENS), shape) * mask
    if "mask" in name:
        return tf.constant(mask, spec.dtype)
    return tf.constant(ids * 0 if "segment" in name else ids, spec.dtype)


def _examples(rows: Mapping[str, list[bytes]]) -> list[bytes]:
    """Return raw rows as serialized tf.Examples."""

    def feature(value: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    count = len(next(iter(rows.values())))
    features = [{name: feature(rows[name][row]) for name in rows} for row in range(count)]
    examples = [tf.train.Example(features=tf.train.Features(feature=each)) for each in features]
    return [example.SerializeToString() for example in examples]


if __name__ == "__main__":
    main()
