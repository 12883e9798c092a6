"""Search spaces: read from the YAML, sampled by KerasTuner, replaced by a plain config."""

import keras_tuner
import pytest
import yaml

from tests.conftest import write_csv
from tests.console import run_command
from tfft.config import parse
from tfft.search.space import Space
from tfft.utils.errors import UserError

BASE = """
data: {train: rows.csv, validation: {fraction: 0.1}}
model: {backbone: "hf:folder"}
method:
  search: choice
  values:
    - {name: full}
    - {name: lora, rank: {search: choice, values: [4, 8]}}
    - {name: dora, rank: {search: choice, values: [16, 32]}}
optimizer:
  learning_rate: {search: loguniform, min: 1.0e-5, max: 1.0e-3}
  layer_decay: {search: uniform, min: 0.7, max: 1.0, step: 0.1, when: {method: full}}
train: {epochs: 4}
tune: {space: {train.batch_size: {search: int, min: 8, max: 32, step: 8}}}
"""


def make_space(text=BASE, **changes):
    return Space({**yaml.safe_load(text), **changes})


def test_sampled_values_give_a_valid_config():
    search_space = make_space()
    oracle = keras_tuner.oracles.RandomSearchOracle(
        keras_tuner.Objective("accuracy", "max"), 50, 1, search_space.hyperparameters()
    )
    ranks = {"full": {None}, "lora": {4, 8}, "dora": {16, 32}}
    sampled = set()
    for _ in range(40):
        values = oracle._random_values()
        config = search_space.config(values)
        name, rank = config.method.name, getattr(config.method, "rank", None)
        sampled.add((name, rank))
        assert rank in ranks[name]
        assert config.train.batch_size in (8, 16, 24, 32)
        assert 1e-5 <= config.optimizer.learning_rate <= 1e-3
        decays = (0.7, 0.8, 0.9, 1.0) if name == "full" else (1.0,)
        assert config.optimizer.layer_decay == pytest.approx(
            min(decays, key=lambda d: abs(d - config.optimizer.layer_decay))
        )
        assert config.tune is None
    assert len(sampled) == 5


def test_values_of_a_config_are_clamped_to_the_space():
    search_space = make_space()
    plain = {k: v for k, v in yaml.safe_load(BASE).items() if k != "tune"}
    config = parse(
        {
            **plain,
            "method": {"name": "dora", "rank": 20},
            "optimizer": {"learning_rate": 0.5},
            "train": {"batch_size": 19},
        }
    )
    assert search_space.values_of(config) == {
        "method": "dora",
        "optimizer.learning_rate": 1e-3,
        "train.batch_size": 16,
        "method.rank": 16,
    }


def test_values_in_lists_booleans_and_null_can_be_searched():
    text = """
data: {train: rows.csv, validation: {fraction: 0.1}}
model: {backbone: "hf:folder"}
train:
  early_stopping: {search: choice, values: [null, {patience: 2}]}
  remat: {search: choice, values: [true, false], default: false}
mask:
  - {match: embeddings, trainable: {search: choice, values: [true, false]}}
"""
    search_space = make_space(text)
    assert search_space.defaults == {
        "train.early_stopping": "None",
        "train.remat": "False",
        "mask.0.trainable": "True",
    }
    config = search_space.config(
        {**search_space.defaults, "train.early_stopping": search_space.dimensions[0].labels[1]}
    )
    assert config.train.early_stopping.patience == 2
    assert config.train.remat is False and config.mask[0].trainable is True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": {"learning_rate": {"search": "lognormal"}}}, "must be one of choice, int"),
        ({"optimizer": {"learning_rate": {"search": "uniform", "min": 1}}}, "takes min and max"),
        (
            {"optimizer": {"learning_rate": {"search": "loguniform", "min": 0, "max": 1}}},
            "a min above 0",
        ),
        (
            {"optimizer": {"learning_rate": {"search": "uniform", "min": 2, "max": 1}}},
            "min must be below max",
        ),
        (
            {"optimizer": {"learning_rate": {"search": "uniform", "min": 0, "max": 1, "mx": 1}}},
            "learning_rate: mx: unknown key; did you mean 'max'",
        ),
        (
            {"optimizer": {"lerning_rate": {"search": "uniform", "min": 0, "max": 1}}},
            "optimizer.lerning_rate: unknown key; did you mean 'learning_rate'",
        ),
        (
            {"train": {"epochs": {"search": "int", "min": 1, "max": 9, "when": {"metod": "full"}}}},
            "no choice 'metod'; did you mean 'method'",
        ),
        (
            {
                "train": {
                    "epochs": {"search": "int", "min": 1, "max": 9, "when": {"method": "fool"}}
                }
            },
            "method must be one of full, lora, dora. Received: 'fool'",
        ),
        (
            {
                "train": {"epochs": {"search": "int", "min": 1, "max": 9}},
                "tune": {"oracle": "hyperband"},
            },
            "train.epochs: halving decides",
        ),
        (
            {"train": {"validate_every": "20 steps"}, "tune": {"oracle": "hyperband"}},
            "train.validate_every: halving compares trials after whole epochs",
        ),
        ({"tune": {"oracle": "optuna"}}, "tune.oracle: must be one of random, grid"),
        ({"tune": {"space": {"train.epochs": {"search": "int"}}}}, "takes min and max"),
    ],
)
def test_errors_name_the_path(change, message):
    with pytest.raises(UserError) as error:
        make_space(**change)
    assert message in str(error.value)


def test_show_prints_the_space_and_the_default_config(tiny, tmp_path):
    rows = write_csv(tmp_path / "rows.csv", 40)
    path = tmp_path / "search.yaml"
    path.write_text(
        f"data: {{train: {rows}, max_length: 16}}\nmodel: {{backbone: 'hf:{tiny}'}}\n"
        "method: {search: choice, values: [{name: full}, {name: lora}]}\n"
        "optimizer: {learning_rate: {search: loguniform, min: 1e-4, max: 1e-2}}\n"
    )
    code, out, err = run_command("show", f"--config={path}")
    assert code == 0, err
    assert "# method: one of full, lora\n" in out
    assert "# optimizer.learning_rate: loguniform from 0.0001 to 0.01\n" in out
    assert "learning_rate: 0.001\n" in out and "parameters are trainable" in out


def test_search_needs_a_space_and_training_refuses_one():
    with pytest.raises(UserError, match="holds no search space"):
        make_space(method={"name": "full"}, optimizer={}, tune={})
    with pytest.raises(UserError) as error:
        parse(yaml.safe_load(BASE))
    assert "config: method: is a search space, which needs tfft tune" in str(error.value)
    assert "optimizer.layer_decay: is a search space" in str(error.value)
