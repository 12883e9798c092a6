"""Parts of MODEL_CARD.md that a full run does not cover; test_train reads the card of a run."""

from types import SimpleNamespace

import numpy as np

from tfft.config import parse
from tfft.report import model_card
from tfft.tasks import classification
from tfft.training.checkpoints import TrainingState

VERSIONS = {"tfft": "1", "tensorflow": "2", "keras": "3"}


def test_energy_is_described():
    one_worker, two_workers = {"workers": 1}, {"workers": 2}
    state = TrainingState(
        seconds=100.2, joules=1800, metered=100.2, meters=["1 CPU package (RAPL)"]
    )
    line = model_card._energy(state, one_worker)
    assert line == "0.50 Wh by 1 CPU package (RAPL); other work of the machine counts too"
    state.metered = 40.2
    assert ", without 60 seconds that were not measured;" in model_card._energy(state, one_worker)
    assert "of the first worker" in model_card._energy(state, two_workers)
    assert model_card._energy(TrainingState(seconds=9), one_worker).startswith("not measured")


def test_classes_are_sorted_by_f1_with_absent_ones_last():
    columns = {
        "precision": np.array([0.0, 0.5, 1.0]),
        "recall": np.array([0.0, 1.0, 0.25]),
        "f1": np.array([0.0, 0.6667, 0.4]),
    }
    support = np.array([0, 4, 1200])
    table = classification.class_table(["none", "a|b", "c\n# <b>d"], columns, support)
    evaluation = SimpleNamespace(details=SimpleNamespace(sections=[table]))
    lines = model_card._tables("test", evaluation).splitlines()
    assert lines[0] == "### By class, weakest first: test"
    assert lines[2:] == [
        "| class | precision | recall | f1 | rows |",
        "| --- | --- | --- | --- | --- |",
        "| c \\# &lt;b&gt;d | 1.0000 | 0.2500 | 0.4000 | 1,200 |",
        "| a\\|b | 0.5000 | 1.0000 | 0.6667 | 4 |",
        "| none |  |  |  | 0 |",
    ]


def test_hostile_names_are_escaped():
    """Class names come from the data; paths and device names come from elsewhere."""
    hostile = "<script>\n# Forged"
    config = parse({"data": {"train": "t.csv"}, "model": {"backbone": f"hf:a`b{hostile}"}})
    facts = {"data": {"labels": ["a", hostile]}, "backbone": "f", "versions": VERSIONS}
    lines = model_card._model(config, facts).splitlines()
    assert [line[:2] for line in lines[2:]] == ["- "] * 3
    assert lines[2] == "- Backbone: ``hf:a`b<script> # Forged`` (fingerprint f)"
    assert lines[3].endswith("one of 2 classes: a, &lt;script&gt; \\# Forged")
