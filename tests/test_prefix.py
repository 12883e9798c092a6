"""The cached prefix: the same training, started above what is frozen."""

import copy
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

import tfft
from tests.conftest import write_csv
from tfft import backbones, masks, prefix
from tfft.config import ModelConfig, TaskConfig
from tfft.errors import UserError
from tfft.model import assemble, stages
from tfft.spec import Rule
from tfft.tasks import TASKS

MIRRORED = {"strategy": "mirrored", "devices": ["CPU:0", "CPU:1"]}


def built(tiny, *moving, pooling="mean"):
    backbone = backbones.load(ModelConfig(backbone=f"hf:{tiny}"))
    task = TaskConfig(pooling=pooling)
    model = assemble(backbone, TASKS["text_classification"], task, list("abc"))
    rules = [Rule(name, True) for name in moving]
    masks.apply(model, stages(backbone, model), [*rules, Rule("*", False)])
    return model


def inputs(rows=3, tokens=9):
    ids = np.random.default_rng(0).integers(5, 60, (rows, tokens)).astype(np.int32)
    mask = (np.arange(tokens) < np.array([9, 4, 6])[:, None]).astype(np.int32)
    return {"token_ids": ids, "padding_mask": mask, "segment_ids": ids * 0}


@pytest.mark.parametrize(
    ("moving", "pooling", "shape", "needs"),
    [
        (["head"], "mean", (16,), set()),  # one vector a row is stored: the pooling is below
        (["head"], "pooled", (16,), set()),
        (["pooler", "head"], "pooled", (16,), {"padding_mask"}),  # of the first token
        (["block_1", "head"], "mean", (None, 16), {"padding_mask"}),
    ],
)
def test_the_two_parts_are_the_model(tiny_two_blocks, moving, pooling, shape, needs):
    model = built(tiny_two_blocks, *moving, pooling=pooling)
    expected = np.asarray(model(inputs(), training=False))
    made = prefix.cut(model)
    assert list(made.shapes.values()) == [shape]
    assert set(made.above.input) == {"below_0"} | needs
    stored = made.below(inputs(), training=True)  # frozen: no dropout, though it trains
    model.start_above(made.above)
    given = {"padding_mask": inputs()["padding_mask"]}
    given |= {name: np.asarray(value) for name, value in stored.items()}
    np.testing.assert_allclose(model(given, training=False), expected, atol=1e-6)
    np.testing.assert_allclose(model(inputs(), training=False), expected, atol=1e-6)


def test_no_cut_where_the_lowest_stage_moves(tiny):
    assert "lowest stage moves" in prefix.cut(built(tiny, "embeddings", "head"))


def trained(config, workdir, **train):
    return tfft.train(config, workdir=workdir, train=train)


def assert_same(one, two, bound):
    for a, b in zip(one.model.weights, two.model.weights, strict=True):
        np.testing.assert_allclose(a.value, np.asarray(b.value), atol=bound, err_msg=a.path)


@pytest.mark.parametrize("method", [{"name": "head"}, {"name": "top", "stages": 1}])
def test_it_is_the_same_training(config, tiny_two_blocks, tmp_path, capfd, method):
    config["method"] = method
    config["data"]["test"] = None
    if method["name"] == "top":  # with a block below: sequences of two widths are stored
        config["model"]["backbone"] = f"hf:{tiny_two_blocks}"
    plain = trained(config, tmp_path / "plain", cache=False)
    exact = trained(config, tmp_path / "exact", cache_type="float32")
    out = capfd.readouterr().err
    assert "cache: on: what is below" in out and "float32" in out
    assert_same(plain, exact, 1e-6)
    halves = trained(config, tmp_path / "halves")
    assert "stored as float16" in capfd.readouterr().err
    assert_same(plain, halves, 2e-3)
    assert trained(config, tmp_path / "b", cache_type="bfloat16").metrics["steps"] == 12


@pytest.fixture(scope="module")
def first(tiny, tmp_path_factory):
    """A run with a cached prefix, its config, and its cache."""
    folder = tmp_path_factory.mktemp("first")
    config = {
        "data": {
            "train": str(write_csv(folder / "train.csv", 120)),
            "validation": {"fraction": 0.2},
            "max_length": 16,
        },
        "model": {"backbone": f"hf:{tiny}"},
        "method": {"name": "head"},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"epochs": 2, "batch_size": 16},
        "evaluate": {"bootstrap": 0, "baselines": False},
        "export": {"enabled": False},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFFT_CACHE", str(folder / "cache"))
        run = trained(config, folder / "run")
    return SimpleNamespace(run=run, config=config, cache=folder / "cache")


@pytest.fixture
def own_cache(first, tmp_path, monkeypatch):
    """A copy of that cache, in use."""
    folder = shutil.copytree(first.cache, tmp_path / "cache")
    monkeypatch.setenv("TFFT_CACHE", str(folder))
    return folder


def test_it_is_read_again_by_the_next_run(first, own_cache, tmp_path, monkeypatch):
    config = copy.deepcopy(first.config)
    monkeypatch.setattr(prefix, "_compute", None)  # would fail if it were computed
    assert_same(first.run, trained(config, tmp_path / "second"), 0)
    config["model"]["surgery"] = {"reinitialize": 1}  # other weights: another prefix
    with pytest.raises(TypeError):
        trained(config, tmp_path / "third")


def test_what_was_not_finished_is_computed_anew(first, own_cache, tmp_path, monkeypatch):
    marks = list((own_cache / "prefix").glob("*/whole"))
    assert len(marks) == 2  # the training rows, the validation rows
    for mark in marks:
        mark.unlink()
    computed, compute = [], prefix._compute

    def counting(*arguments, **more):
        computed.append(1)
        return compute(*arguments, **more)

    monkeypatch.setattr(prefix, "_compute", counting)
    assert_same(first.run, trained(first.config, tmp_path / "second"), 0)
    assert len(computed) == 2


def test_two_replicas_read_it(config, tiny_two_blocks, tmp_path):
    config["method"] = {"name": "top", "stages": 1}
    config["model"]["backbone"] = f"hf:{tiny_two_blocks}"
    config["data"]["validation"] = config["data"]["test"] = None
    config["model"]["dropout"], config["task"] = 0.0, {"dropout": 0.0}
    one = trained(config, tmp_path / "one")
    two = tfft.train(config, workdir=tmp_path / "two", distribute=MIRRORED)
    for a, b in zip(one.model.weights, two.model.weights, strict=True):
        np.testing.assert_allclose(a.value, b.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": {"name": "lora"}}, "computes 0% of the model only"),
        ({"method": {"name": "head"}, "train": {"epochs": 1}}, "read for 1.0 epochs only"),
        (
            {
                "method": {"name": "head"},
                "regularization": {"adversarial": {"name": "fgm"}},
            },
            "adversarial training changes the embeddings",
        ),
    ],
)
def test_auto_says_why_not(config, tmp_path, capfd, changes, reason):
    config["data"]["validation"] = config["data"]["test"] = None
    tfft.train(config, workdir=tmp_path / "run", **changes)
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("cache: off")]
    assert reason in told[0]


def test_it_cannot_be_forced(config, tmp_path):
    with pytest.raises(UserError, match="cache: the lowest stage moves"):
        trained(config, tmp_path / "run", cache=True)
