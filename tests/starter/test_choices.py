"""The training that a first config starts from is the one that `method: auto` advises."""

import pytest

from tfft.config import parse
from tfft.methods import auto
from tfft.starter import choices


@pytest.mark.parametrize("rows", [1_000, 19_999, 20_000, 499_999, 500_000, 2_000_000])
@pytest.mark.parametrize("backbone", [choices.ENGLISH, choices.MULTILINGUAL])
def test_training_is_that_of_the_advice(rows, backbone):
    parameters = 23e6 if backbone == choices.ENGLISH else 278e6
    facts = auto.Facts(rows, 3, 20.0, int(parameters), 6, "CPU", None, 0.01)
    raw = {"data": {"train": "t.csv"}, "model": {"backbone": backbone}, "method": {"name": "auto"}}
    advised, _ = auto.advise(parse(raw), facts)
    chosen = choices.training(rows, backbone, True)
    written = parse(
        {
            **raw,
            "method": {"name": chosen.method},
            "optimizer": chosen.optimizer,
            "train": chosen.train,
        }
    )
    assert (written.method, written.optimizer, written.train) == (
        advised.method,
        advised.optimizer,
        advised.train,
    )


@pytest.mark.parametrize("rows", [1_000, 20_000, 600_000])
def test_image_epochs_are_those_of_the_advice(rows):
    facts = auto.Facts(rows, 3, None, 2_000_000, 17, "CPU", None, 0.01)
    raw = {
        "data": {"train": "t/"},
        "model": {"backbone": choices.IMAGES},
        "task": {"name": "image_classification"},
        "method": {"name": "auto"},
    }
    advised, _ = auto.advise(parse(raw), facts)
    assert advised.train.epochs == choices.image_epochs(rows)
    assert advised.optimizer.learning_rate == choices.image_rates(True)["learning_rate"]


@pytest.mark.parametrize("backbone", choices.MILLION_PARAMETERS)
def test_rates_go_by_the_size_of_the_backbone(backbone):
    is_text = not backbone.startswith("keras:")
    rate = choices.training(5_000, backbone, is_text).optimizer["learning_rate"]
    is_small = choices.MILLION_PARAMETERS[backbone] < 50
    assert rate == ((2e-4 if is_text else 5e-4) if is_small else 3e-5)
