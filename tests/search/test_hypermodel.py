"""KerasTuner's own tuners over a config."""

import keras_tuner
import numpy as np
import pytest

from tests.conftest import write_csv
from tfft.search import HyperModel
from tfft.training import best_checkpoint
from tfft.utils.errors import UserError

pytest.importorskip("tensorboard")  # KerasTuner's loop imports it


@pytest.fixture
def raw(tiny, tmp_path):
    return {
        "data": {
            "train": str(write_csv(tmp_path / "train.csv", 64)),
            "validation": {"fraction": 0.25},
            "max_length": 16,
        },
        "model": {"backbone": f"hf:{tiny}"},
        "method": {
            "search": "choice",
            "values": [
                {"name": "full"},
                {"name": "lora", "rank": {"search": "choice", "values": [2, 4]}},
            ],
        },
        "optimizer": {"learning_rate": {"search": "loguniform", "min": 1e-4, "max": 3e-2}},
        "train": {"epochs": 2, "batch_size": 16},
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tuner", "options"),
    [
        (keras_tuner.RandomSearch, {"max_trials": 2}),
        (keras_tuner.Hyperband, {"max_epochs": 2, "factor": 2}),
        (keras_tuner.BayesianOptimization, {"max_trials": 2}),
        (keras_tuner.GridSearch, {"max_trials": 3}),
    ],
)
def test_tuners_search_over_a_config(raw, tmp_path, tuner, options):
    hypermodel = HyperModel(raw)
    search_tuner = tuner(
        hypermodel,
        objective=keras_tuner.Objective("val_macro_f1", "max"),
        directory=str(tmp_path / "tuner"),
        seed=1,
        **options,
    )
    search_tuner.search(verbose=0)
    trials = [t for t in search_tuner.oracle.trials.values() if t.status == "COMPLETED"]
    assert len(trials) == len(search_tuner.oracle.trials) >= 2
    for trial in trials:
        assert 0 <= trial.score <= 1 and np.isfinite(trial.score)
        values = trial.hyperparameters.values
        assert (values["method"] == "lora") == ("method.rank" in values)
    model = search_tuner.get_best_models(1)[0]
    metrics = best_checkpoint.validation_metrics(*hypermodel.built(model))
    assert metrics["macro_f1"] == pytest.approx(max(trial.score for trial in trials), abs=1e-6)


def test_unsupported_methods_and_data_are_errors(raw):
    hp = keras_tuner.HyperParameters()
    with pytest.raises(UserError, match="trains in phases"):
        HyperModel({**raw, "method": {"name": "lp_ft"}}).build(hp)
    hypermodel = HyperModel(raw)
    model = hypermodel.build(keras_tuner.HyperParameters())
    with pytest.raises(UserError, match="the data come from the config"):
        hypermodel.fit(hp, model, np.zeros(3))
