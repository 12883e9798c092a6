"""Weights stored in fewer bits: the served answers, the rounding error and the restored model."""

import numpy as np
import pytest

import tfft
from tests.conftest import one_epoch
from tests.console import run_command
from tests.training.test_loop import weights
from tfft.export import ExportedModel, weight_storage
from tfft.run import load_run
from tfft.utils.errors import UserError

ROWS = ["a red sky", "", "GREEN grass!", "the blue " * 20]
# Half a quantization step, relative to the weight (float) or to the largest of its row (int8).
STEP = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "int8": 1 / 254}


@pytest.fixture(scope="module")
def run(exported):
    return exported


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow) if kind != "int8" else kind for kind in STEP],
)
def test_export_equals_the_rounded_model_and_reports_the_loss(run, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_storage, "MIN_ELEMENTS", 64)  # the network is tiny
    original, live = weights(run), run.task.activate(run.logits(ROWS), run.fitted)
    code, out, err = run_command(
        "export",
        f"--workdir={run.workdir}",
        f"--weight_dtype={kind}",
        f"--output={tmp_path / 'export'}",
    )
    assert code == 0 and out.strip() == str(tmp_path / "export" / "1"), err
    restored = weights(run)
    assert all(np.array_equal(original[name], restored[name]) for name in original)
    with weight_storage.rounded_weights(run.model, kind):
        expected = run.task.activate(run.logits(ROWS), run.fitted)
    actual = ExportedModel(tmp_path / "export").outputs([(row,) for row in ROWS], 4)[
        "probabilities"
    ]
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert 0 < np.abs(actual - live).max() < 0.05
    assert f"export: {kind} weights take" in err and "on 30 rows accuracy" in err


@pytest.mark.parametrize("kind", list(STEP))
def test_rounding_error_is_at_most_half_a_step(run, kind, monkeypatch):
    monkeypatch.setattr(weight_storage, "MIN_ELEMENTS", 64)
    original = weights(run)
    with weight_storage.rounded_weights(run.model, kind) as stored:
        assert stored
        for weight in stored:
            exact, rounded = original[weight.variable.path], weight.variable.numpy()
            np.testing.assert_array_equal(rounded, weight.value().numpy())
            bound = np.abs(exact).max() if kind == "int8" else np.abs(exact)
            assert (np.abs(rounded - exact) <= STEP[kind] * bound * 1.001 + 1e-7).all()
            bits = {"float16": 16, "bfloat16": 16, "int8": 8}[kind]
            scales = 4 * max(exact.shape) if kind == "int8" else 0
            assert weight.size <= exact.size * bits / 8 + scales


def test_float32_stores_nothing(run):
    with weight_storage.rounded_weights(run.model, "float32") as stored:
        assert stored == []


def test_hub_backbone_rejects_rounding(run, monkeypatch):
    monkeypatch.setattr(type(run.model.layers[-1]), "saved", None, raising=False)
    with (
        pytest.raises(UserError, match=r"must be float32 with a hub: backbone\. Received: float16"),
        weight_storage.rounded_weights(run.model, "float16"),
    ):
        pass


@pytest.mark.slow
def test_int8_export_is_less_than_half_the_size(tiny_two_blocks, tmp_path, monkeypatch):
    """With two blocks: with one, the vectors, which stay float32, are too large a share."""
    monkeypatch.setattr(weight_storage, "MIN_ELEMENTS", 64)
    config = one_epoch(tiny_two_blocks, tmp_path, export={"enabled": False})
    run, sizes = tfft.train(config, workdir=tmp_path / "run"), {}
    for kind in ("float32", "int8"):
        export = run.config.export.model_copy(update={"weight_dtype": kind, "warmup": False})
        run.config = run.config.model_copy(update={"export": export})
        path = run.export(tmp_path / kind)
        sizes[kind] = sum(p.stat().st_size for p in (path / "variables").glob("*data*"))
    assert sizes["int8"] < 0.5 * sizes["float32"]
    assert load_run(run.workdir).config.export.weight_dtype == "float32"


def test_unknown_dtype_is_rejected(run, tmp_path):
    with pytest.raises(UserError, match=r"must be one of float32, float16, .*. Received: 'int4'"):
        run.export(tmp_path / "export", "int4")
    assert list(tmp_path.iterdir()) == []
