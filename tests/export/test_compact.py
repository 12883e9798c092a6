"""Weights stored in fewer bits: what is served, what is lost, what comes back."""

import numpy as np
import pytest

import tfft
from tests.conftest import one_epoch
from tests.console import command
from tests.training.test_loop import weights
from tfft.export import ExportedModel, compact
from tfft.run import load_run
from tfft.utils.errors import UserError

ROWS = ["a red sky", "", "GREEN grass!", "the blue " * 20]
# Relative to the largest weight of a row or column: half a step.
STEP = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "int8": 1 / 254}


@pytest.fixture(scope="module")
def run(exported):
    return exported


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow) if kind != "int8" else kind for kind in STEP],
)
def test_the_export_answers_as_the_rounded_model_and_says_what_was_lost(
    run, kind, tmp_path, monkeypatch
):
    monkeypatch.setattr(compact, "LEAST", 64)  # the network is tiny
    before, live = weights(run), run.task.probabilities(run.logits(ROWS))
    code, out, err = command(
        "export",
        f"--workdir={run.workdir}",
        f"--weight_dtype={kind}",
        f"--output={tmp_path / 'export'}",
    )
    assert code == 0 and out.strip() == str(tmp_path / "export" / "1"), err
    after = weights(run)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    with compact.rounded(run.model, kind):
        expected = run.task.probabilities(run.logits(ROWS))
    found = ExportedModel(tmp_path / "export").probabilities([(row,) for row in ROWS], 4)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert 0 < np.abs(found - live).max() < 0.05
    assert f"export: {kind} weights take" in err and "on 30 rows accuracy" in err


@pytest.mark.parametrize("kind", list(STEP))
def test_rounding_is_within_half_a_step(run, kind, monkeypatch):
    monkeypatch.setattr(compact, "LEAST", 64)
    before = weights(run)
    with compact.rounded(run.model, kind) as stored:
        assert stored
        for one in stored:
            exact, now = before[one.variable.path], one.variable.numpy()
            np.testing.assert_array_equal(now, one.value().numpy())
            bound = np.abs(exact).max() if kind == "int8" else np.abs(exact)
            assert (np.abs(now - exact) <= STEP[kind] * bound * 1.001 + 1e-7).all()
            bits = {"float16": 16, "bfloat16": 16, "int8": 8}[kind]
            scales = 4 * max(exact.shape) if kind == "int8" else 0
            assert one.size <= exact.size * bits / 8 + scales


def test_float32_is_what_it_was(run):
    with compact.rounded(run.model, "float32") as stored:
        assert stored == []


def test_a_saved_model_inside_keeps_its_own(run, monkeypatch):
    monkeypatch.setattr(type(run.model.layers[-1]), "saved", None, raising=False)
    with (
        pytest.raises(UserError, match="float16 does not go with hub: backbones"),
        compact.rounded(run.model, "float16"),
    ):
        pass


@pytest.mark.slow
def test_the_size_on_the_disk(tiny_two_blocks, tmp_path, monkeypatch):
    """Of two blocks: in one, the vectors, which stay as they are, are too large a part."""
    monkeypatch.setattr(compact, "LEAST", 64)
    config = one_epoch(tiny_two_blocks, tmp_path, export={"enabled": False})
    run, sizes = tfft.train(config, workdir=tmp_path / "run"), {}
    for kind in ("float32", "int8"):
        export = run.config.export.model_copy(update={"weight_dtype": kind, "warmup": False})
        run.config = run.config.model_copy(update={"export": export})
        path = run.export(tmp_path / kind)
        sizes[kind] = sum(p.stat().st_size for p in (path / "variables").glob("*data*"))
    assert sizes["int8"] < 0.5 * sizes["float32"]
    assert load_run(run.workdir).config.export.weight_dtype == "float32"


def test_a_form_that_there_is_not(run, tmp_path):
    with pytest.raises(UserError, match=r"must be one of float32, float16, .*; received 'int4'"):
        run.export(tmp_path / "export", "int4")
    assert list(tmp_path.iterdir()) == []
