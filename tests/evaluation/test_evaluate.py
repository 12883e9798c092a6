"""The table of the metrics of a run."""

from tfft.evaluation import evaluate
from tfft.evaluation.evaluate import Evaluation


def evaluation(accuracy, baselines=None, **metrics):
    return Evaluation({"accuracy": accuracy, "log_loss": 1.5, **metrics}, baselines or {}, None, [])


def test_splits_and_baselines_are_columns():
    interval = {"accuracy/low": 0.25, "accuracy/high": 0.75}
    baselines = {"majority": {"accuracy": 0.125, "log_loss": 2.0}}
    table = evaluate.table(
        {
            "validation": evaluation(0.5, {"majority": {"accuracy": 0.2, "log_loss": 3.0}}),
            "test": evaluation(0.625, baselines, **interval),
        },
        confidence=0.975,
    )
    assert table.splitlines() == [
        "          validation  test                     majority",
        "accuracy  0.5000      0.6250 [0.2500, 0.7500]  0.1250",
        "log_loss  1.5000      1.5000                   2.0000",
        "in brackets: 97.5% intervals; majority: baselines on test",
    ]


def test_a_split_alone():
    assert evaluate.table({"test": evaluation(1)}, 0.95).splitlines() == [
        "          test",
        "accuracy  1.0000",
        "log_loss  1.5000",
    ]
