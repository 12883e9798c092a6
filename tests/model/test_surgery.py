"""Tests of layer surgery: reinitialized and dropped blocks, shrunk weights."""

import numpy as np
import pytest

import tfft
from tfft import backbones
from tfft.config import ModelConfig, SurgeryConfig
from tfft.config.tasks import TextClassification
from tfft.model import assemble, stages, surgery
from tfft.tasks import TASKS
from tfft.utils.errors import UserError

ROWS = ["a red sky", "the blue apple"]


@pytest.fixture(scope="session")
def tiny(tiny_two_blocks):
    return tiny_two_blocks


def apply_surgery(tiny, **section):
    """Return the changed paths, and the weights before and after the surgery."""
    config = ModelConfig(backbone=f"hf:{tiny}", surgery=section)
    backbone = backbones.load(config)
    model = assemble(backbone, TASKS["text_classification"], TextClassification(), list("abc"))
    weights_before = {v.path: np.array(v.value) for v in model.weights}
    changed = surgery.apply(model, stages(backbone, model), config.surgery, seed=3)
    weights_after = {v.path: np.array(v.value) for v in model.weights}
    return changed, weights_before, weights_after


def test_top_blocks_and_pooler_are_reinitialized(tiny):
    changed, weights_before, weights_after = apply_surgery(tiny, reinitialize=1)
    assert changed == {p for p in weights_before if p.startswith(("block_1/", "pooler/"))}
    for path in set(weights_before) - changed:
        np.testing.assert_array_equal(weights_before[path], weights_after[path])
    assert (weights_after["block_1/attention/qkv/bias"] == 0).all()
    assert (weights_after["block_1/output_norm/gamma"] == 1).all()
    kernel = weights_after["block_1/attention/qkv/kernel"]
    assert 0.01 < kernel.std() < 0.025 and np.abs(kernel).max() <= 0.04
    repeated = apply_surgery(tiny, reinitialize=1)[2]
    for path, value in weights_after.items():
        if not path.startswith("head/"):
            np.testing.assert_array_equal(value, repeated[path])


def test_pooler_only(tiny):
    changed, *_ = apply_surgery(tiny, pooler="new")
    assert changed == {"pooler/kernel", "pooler/bias"}


def test_shrink_and_perturb(tiny):
    changed, weights_before, weights_after = apply_surgery(tiny, shrink=0.5, perturb=0.0)
    assert "block_0/up/kernel" in changed and not any(p.startswith("head/") for p in changed)
    np.testing.assert_allclose(
        weights_after["block_0/up/kernel"], 0.5 * weights_before["block_0/up/kernel"]
    )
    perturbed = apply_surgery(tiny, shrink=0.5, perturb=1.0)[2]["block_0/up/kernel"]
    assert 0.01 < (perturbed - weights_after["block_0/up/kernel"]).std() < 0.025


def test_dropped_block_leaves_the_other_blocks_unchanged(tiny, config, tmp_path):
    full = backbones.load(ModelConfig(backbone=f"hf:{tiny}"))
    short = backbones.load(ModelConfig(backbone=f"hf:{tiny}", surgery={"drop": ["block_0"]}))
    assert [s.name for s in short.stages] == ["embeddings", "block_1", "pooler"]
    assert not [v.path for v in short.model.weights if v.path.startswith("block_0/")]
    ids = np.arange(5, 13, dtype=np.int32)[None]
    inputs = {"token_ids": ids, "padding_mask": ids * 0 + 1, "segment_ids": ids * 0}
    x = full.model.get_layer("embeddings")(ids, ids * 0)
    bias = full.model.get_layer("attention_bias")(inputs["padding_mask"])
    expected = full.model.get_layer("block_1")(x, bias)
    np.testing.assert_allclose(short.model(inputs)["sequence"], expected, atol=1e-6)
    config["model"]["surgery"] = {"drop": ["block_1"], "reinitialize": 1}
    config["method"] = {"name": "head"}
    run = tfft.train(config, workdir=tmp_path / "run")
    np.testing.assert_allclose(tfft.load(run.workdir).logits(ROWS), run.logits(ROWS), atol=1e-6)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"reinitialize": 3}, "the backbone has 2 blocks. Received: 3"),
        ({"drop": ["blok_1"]}, "no block 'blok_1'; did you mean 'block_"),
        ({"drop": ["block_0", "block_1"]}, "at least one block must remain"),
    ],
)
def test_invalid_sections_are_refused(tiny, section, message):
    with pytest.raises(UserError, match=message):
        apply_surgery(tiny, **section)


def test_perturb_needs_shrink():
    with pytest.raises(ValueError, match="`perturb` needs `shrink`"):
        SurgeryConfig(perturb=0.1)
