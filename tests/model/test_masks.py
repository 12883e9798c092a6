"""Tests of masks: decision, audit, and that frozen variables do not change."""

from itertools import pairwise

import keras
import numpy as np
import pytest

from tfft.config.methods import GradualMethod
from tfft.methods import METHODS
from tfft.model import masks, stages
from tfft.spec import Backbone, HeadStyle, Rule, Stage
from tfft.utils.errors import UserError

STAGES = (
    Stage("embeddings", "embeddings/"),
    Stage("block_0", "block_0/"),
    Stage("block_1", "block_1/"),
    Stage("pooler", "pooler/"),
    Stage("head", "head/"),
)
VARIABLES = [
    ("embeddings/token", 10),
    ("block_0/kernel", 4),
    ("block_0/bias", 2),
    ("block_1/kernel", 4),
    ("block_1/bias", 2),
    ("pooler/kernel", 4),
    ("head/kernel", 3),
]


class Config:
    stages = 1


def trainable_paths(mask):
    return {entry.path for entry in mask.entries if entry.trainable}


def test_first_match_wins():
    rules = (Rule("*/bias", False), Rule("block_1", True, 0.5), Rule("*", False))
    mask = masks.decide(VARIABLES, STAGES, rules)
    assert trainable_paths(mask) == {"block_1/kernel"}
    assert mask.learning_rates == {"block_1/kernel": 0.5}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            (Rule("blok_0", True), Rule("*", True)),
            "must match a stage or a variable. Received: 'blok_0'; did you mean 'block_",
        ),
        (
            (Rule("head", True),),
            "no rule covers embeddings/token",
        ),
        (
            (Rule("*", True), Rule("head", False)),
            "must match a variable that no earlier rule matches. Received: 'head'",
        ),
        ((Rule("*", False),), "leave at least one trainable"),
        ((Rule("re:(", True),), "must be a regular expression after `re:`"),
    ],
)
def test_incomplete_and_dead_rules_are_errors(rules, message):
    with pytest.raises(UserError) as error:
        masks.decide(VARIABLES, STAGES, rules)
    assert message in str(error.value)


def test_variable_without_stage_is_an_error():
    with pytest.raises(ValueError, match="exactly one stage"):
        masks.decide([("other/kernel", 1)], STAGES, (Rule("*", True),))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("full", {path for path, _ in VARIABLES}),
        ("head", {"head/kernel"}),
        ("top", {"block_1/kernel", "block_1/bias", "pooler/kernel", "head/kernel"}),
    ],
)
def test_methods_train_the_expected_variables(method, expected):
    (phase,) = METHODS[method].apply(None, STAGES, Config())
    assert trainable_paths(masks.decide(VARIABLES, STAGES, phase.rules)) == expected


def test_a_head_without_variables_is_still_the_last_stage():
    inputs = keras.Input([2])
    vectors = keras.layers.Dense(3, name="block_0")(inputs)
    encoder = keras.Model(inputs, {"pooled": vectors})
    backbone = Backbone(encoder, STAGES[:-1], HeadStyle("pooled"), "", {})
    cosine = keras.Model(inputs, keras.layers.UnitNormalization(name="head")(vectors))
    assert [stage.name for stage in stages(backbone, cosine)] == ["block_0", "head"]


@pytest.mark.parametrize("method", ["full", "top"])
def test_methods_train_below_a_head_without_variables(method):
    (phase,) = METHODS[method].apply(None, STAGES, Config())
    trained = trainable_paths(masks.decide(VARIABLES[:-1], STAGES, phase.rules))
    assert {"block_1/kernel", "pooler/kernel"} <= trained


def test_a_head_without_variables_cannot_be_trained_alone():
    (phase,) = METHODS["head"].apply(None, STAGES, Config())
    variables = VARIABLES[:-1]
    with pytest.raises(UserError, match="leave at least one trainable"):
        masks.decide(variables, STAGES, phase.rules)
    with pytest.raises(UserError, match=r"the stage has no variables\. Received: 'head'"):
        masks.decide(variables, STAGES, (Rule("head", True), Rule("*", True)))


def test_more_stages_than_blocks_is_an_error():
    config = Config()
    config.stages = 3
    with pytest.raises(UserError, match=r"must be at most 2, .*Received: 3"):
        METHODS["top"].apply(None, STAGES, config)


# Two backbones, of two and of three blocks.
TOWERS = tuple(
    Stage(name, f"{name}/")
    for name in (
        *("text/embeddings", "text/block_0", "text/block_1", "text/pooler"),
        *("image/stem", "image/block_0", "image/block_1", "image/block_2", "image/top"),
        "head",
    )
)


def test_depth_is_counted_in_each_backbone():
    above, below = {"head": 0, "text/pooler": 0, "image/top": 0}, {"image/stem": 4}
    assert masks.depths(TOWERS) == above | below | {
        "text/block_1": 1,
        "text/block_0": 2,
        "text/embeddings": 3,
        "image/block_2": 1,
        "image/block_1": 2,
        "image/block_0": 3,
    }
    rule = Rule("*", True)
    mask = masks.decide([(f"{stage.name}/kernel", 1) for stage in TOWERS], TOWERS, [rule])
    rates = masks.layer_decay(mask, TOWERS, 0.5).learning_rates
    assert rates["text/block_0/kernel"] == rates["image/block_1/kernel"] == 0.25
    assert rates["image/stem/kernel"] == 0.5**4 and "text/pooler/kernel" not in rates


def test_top_trains_the_top_blocks_of_each_backbone():
    (phase,) = METHODS["top"].apply(None, TOWERS, Config())
    trained = {rule.match for rule in phase.rules if rule.trainable}
    assert trained == {"text/block_1", "text/pooler", "image/block_2", "image/top", "head"}
    config = Config()
    config.stages = 3
    with pytest.raises(UserError, match="must be at most 2"):
        METHODS["top"].apply(None, TOWERS, config)


def test_gradual_unfreezes_two_backbones_side_by_side():
    phases = METHODS["gradual"].apply(None, TOWERS, GradualMethod(name="gradual"))
    trained = [{rule.match for rule in phase.rules if rule.trainable} for phase in phases]
    added = [after - before for before, after in pairwise([set(), *trained])]
    assert added == [
        {"head"},
        {"text/pooler", "text/block_1", "image/top", "image/block_2"},
        {"text/block_0", "image/block_1"},
        {"text/embeddings", "image/block_0"},
        {"image/stem"},
    ]


def test_table_counts_parameters():
    text = masks.table(masks.decide(VARIABLES, STAGES, (Rule("head", True), Rule("*", False))))
    assert "3 of 29 parameters are trainable (10.34%)" in text
    assert "frozen" in text.split("\n")[1]


def small_model():
    inputs = keras.Input([4])
    x = keras.layers.Dense(4, name="block_0")(inputs)
    x = keras.layers.Dropout(0.9, name="dropout")(x)
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(x))


def test_frozen_variables_are_bit_equal_after_training():
    keras.utils.set_random_seed(0)
    model = small_model()
    stages = (Stage("block_0", "block_0/"), Stage("head", "head/"))
    masks.apply(model, stages, (Rule("head/kernel", True), Rule("*", False)))
    before = {v.path: np.array(v.value) for v in model.weights}
    model.compile("sgd", "mse")
    model.fit(np.ones([8, 4]), np.zeros([8, 2]), verbose=0)
    changed = {v.path for v in model.weights if not np.array_equal(before[v.path], v.value)}
    assert changed == {"head/kernel"}
    assert [v.path for v in model.optimizer._trainable_variables] == ["head/kernel"]


def test_second_apply_unfreezes():
    model = small_model()
    stages = (Stage("block_0", "block_0/"), Stage("head", "head/"))
    masks.apply(model, stages, (Rule("head", True), Rule("*", False)))
    masks.apply(model, stages, (Rule("*", True),))
    assert len(model.trainable_variables) == 4
