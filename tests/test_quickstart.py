"""The data and the recipes of the quickstarts; `make quickstart` tests the rest."""

import csv
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def quickstart():
    return load_example("quickstart")


def test_docstrings_of_python_and_cython(quickstart, tmp_path):
    (tmp_path / "a.py").write_text('def f():\n    """Gives one. Then more."""\nclass C: pass\n')
    (tmp_path / "b.pyx").write_text('cdef class C:\n    """\n    Holds two.\n    """\n')
    (tmp_path / "c.py").write_text("def f(:\n")
    docstrings = [
        t for name in "abc" for p in tmp_path.glob(f"{name}.*") for t in quickstart.docstrings(p)
    ]
    texts = [" ".join(t.split()) for t in docstrings if t]
    assert texts == ["Gives one. Then more.", "Holds two."]


def test_tables_are_balanced_and_disjoint(quickstart, tmp_path, monkeypatch):
    sentences = {
        "numpy": [f"Return the array number {i}." for i in range(9)] + ["Shared by two of them."],
        "keras": [f"Build the layer number {i}." for i in range(9)] + ["Shared by TWO of them!"],
    }
    monkeypatch.setattr(quickstart, "LIBRARIES", tuple(sentences))
    monkeypatch.setattr(quickstart, "sentences", sentences.__getitem__)
    monkeypatch.setattr(quickstart, "TRAIN", 6)
    monkeypatch.setattr(quickstart, "TEST", 3)
    quickstart.write_tables(tmp_path / "data")
    rows = {
        name: list(csv.reader((tmp_path / "data" / f"{name}.csv").open()))[1:]
        for name in ("train", "test")
    }
    assert {name: len(r) for name, r in rows.items()} == {"train": 12, "test": 6}
    assert not {t for t, _ in rows["train"]} & {t for t, _ in rows["test"]}
    assert not [t for r in rows.values() for t, _ in r if "hared" in t]
    monkeypatch.setattr(quickstart, "TRAIN", 60)
    with pytest.raises(SystemExit, match="only 9 different docstrings"):
        quickstart.write_tables(tmp_path / "more")


def test_rows_fit_into_the_time(quickstart):
    assert quickstart.rows_per_library(1e-4) == quickstart.TRAIN
    assert quickstart.rows_per_library(10.0) == quickstart.MIN_TRAIN
    rows = quickstart.rows_per_library(0.02)
    assert quickstart.MIN_TRAIN < rows < quickstart.TRAIN
    trained = rows * len(quickstart.LIBRARIES) * (1 - quickstart.VALIDATION) * quickstart.EPOCHS
    assert 0.9 * quickstart.SECONDS < 0.02 * trained < quickstart.SECONDS


def test_recipe_of_a_slow_machine_has_fewer_rows(quickstart, tmp_path, monkeypatch):
    from tfft.config import load
    from tfft.training import advice

    data = tmp_path / "a: folder \N{GRINNING FACE}"
    data.mkdir()
    rows = [(f"text {i}", name) for i in range(50) for name in quickstart.LIBRARIES]
    for name in ("train", "test"):
        with open(data / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("text", "library"), *rows])
    backbone = type("Spec", (), {"origin": str(tmp_path / "package" / "__init__.py")})
    monkeypatch.setattr(quickstart.importlib.util, "find_spec", lambda name: backbone)
    monkeypatch.setattr(advice, "seconds_per_training_row", lambda config: 0.1)
    path = tmp_path / "quickstart.yaml"
    quickstart.write_recipe(path, data, tmp_path / "run")
    config = load(path)
    assert config.model.backbone == f"hf:{tmp_path / 'package' / 'model'}"
    count = quickstart.rows_per_library(0.1)
    assert str(config.data.train.path) == str(data / f"train_{count}.csv")
    with open(config.data.train.path, newline="") as file:
        header, *kept = csv.reader(file)
    assert header == ["text", "library"] and kept == [list(row) for row in rows[: 8 * count]]
    assert "100 ms per row" in path.read_text()


@pytest.fixture
def quickstart_image():
    return load_example("quickstart_image")


def test_epochs_fit_into_the_time(quickstart_image):
    assert quickstart_image.epochs_in_time(1e-4, 1437) == quickstart_image.EPOCHS
    assert quickstart_image.epochs_in_time(10.0, 1437) == quickstart_image.MIN_EPOCHS
    epochs = quickstart_image.epochs_in_time(0.01, 1437)
    assert quickstart_image.MIN_EPOCHS < epochs < quickstart_image.EPOCHS
    trained = epochs * 1437 * (1 - quickstart_image.VALIDATION)
    assert 0.8 * quickstart_image.SECONDS < 0.01 * trained < quickstart_image.SECONDS


def test_image_recipe_has_the_settings_of_the_recipe_in_configs(
    quickstart_image, tmp_path, monkeypatch
):
    from tfft.config import load
    from tfft.training import advice

    data = tmp_path / "a: folder \N{GRINNING FACE}"
    for number in range(1437):
        path = data / "train" / str(number % 10) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (data / "test").mkdir()
    monkeypatch.setattr(advice, "seconds_per_training_row", lambda config: 0.01)
    path = tmp_path / "quickstart_image.yaml"
    quickstart_image.write_recipe(path, data, tmp_path / "run")
    config, expected = load(path), load(ROOT / "configs" / "image" / "digits_mobilenet_full.yaml")
    assert config.data.train.path == str(data / "train")
    epochs = quickstart_image.epochs_in_time(0.01, 1437)
    assert "10.0 ms per image" in path.read_text() and config.train.epochs == epochs
    assert expected.train.epochs == quickstart_image.EPOCHS
    for name in ("model", "task", "method", "optimizer"):
        assert getattr(config, name) == getattr(expected, name)
    assert config.train == expected.train.model_copy(update={"epochs": epochs})
