"""Blocks that begin anew, blocks that are taken out, weights that shrink."""

import numpy as np
import pytest

import tfft
from tfft import backbones
from tfft.config import ModelConfig, SurgeryConfig, TaskConfig
from tfft.model import assemble, stages, surgery
from tfft.tasks import TASKS
from tfft.utils.errors import UserError

ROWS = ["a red sky", "the blue apple"]


@pytest.fixture(scope="session")
def tiny(tiny_two_blocks):
    return tiny_two_blocks


def built(tiny, **section):
    config = ModelConfig(backbone=f"hf:{tiny}", surgery=section)
    backbone = backbones.load(config)
    model = assemble(backbone, TASKS["text_classification"], TaskConfig(), list("abc"))
    before = {v.path: np.array(v.value) for v in model.weights}
    changed = surgery.apply(model, stages(backbone, model), config.surgery, seed=3)
    after = {v.path: np.array(v.value) for v in model.weights}
    return changed, before, after


def test_top_blocks_and_pooler_begin_anew(tiny):
    changed, before, after = built(tiny, reinitialize=1)
    assert changed == {p for p in before if p.startswith(("block_1/", "pooler/"))}
    for path in set(before) - changed:
        np.testing.assert_array_equal(before[path], after[path])
    assert (after["block_1/attention/qkv/bias"] == 0).all()
    assert (after["block_1/output_norm/gamma"] == 1).all()
    kernel = after["block_1/attention/qkv/kernel"]
    assert 0.01 < kernel.std() < 0.025 and np.abs(kernel).max() <= 0.04
    again = built(tiny, reinitialize=1)[2]
    for path, value in after.items():
        if not path.startswith("head/"):
            np.testing.assert_array_equal(value, again[path])


def test_the_pooler_alone(tiny):
    changed, *_ = built(tiny, pooler="new")
    assert changed == {"pooler/kernel", "pooler/bias"}


def test_shrink_and_perturb(tiny):
    changed, before, after = built(tiny, shrink=0.5, perturb=0.0)
    assert "block_0/up/kernel" in changed and not any(p.startswith("head/") for p in changed)
    np.testing.assert_allclose(after["block_0/up/kernel"], 0.5 * before["block_0/up/kernel"])
    perturbed = built(tiny, shrink=0.5, perturb=1.0)[2]["block_0/up/kernel"]
    assert 0.01 < (perturbed - after["block_0/up/kernel"]).std() < 0.025


def test_a_dropped_block_is_as_if_it_were_not_there(tiny, config, tmp_path):
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
        ({"reinitialize": 3}, "the backbone has 2 blocks; received 3"),
        ({"drop": ["blok_1"]}, "no block 'blok_1'; did you mean 'block_"),
        ({"drop": ["block_0", "block_1"]}, "one block must be left"),
    ],
)
def test_mistakes(tiny, section, message):
    with pytest.raises(UserError, match=message):
        built(tiny, **section)


def test_perturb_needs_shrink():
    with pytest.raises(ValueError, match="`perturb` needs `shrink`"):
        SurgeryConfig(perturb=0.1)
