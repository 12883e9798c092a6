"""What the tasks of the table have in common; tests/tasks/test_contract.py has the rest."""

import numpy as np
import pytest
import tensorflow as tf

from tfft.tasks import TASKS, answers

LABELS = ["a", "b c", "ü"]
LOGITS = np.random.default_rng(0).normal(0, 2, (40, 3)).astype(np.float32)


# test_token_classification.py has the same for logits of tokens.
@pytest.fixture(params=[name for name, task in TASKS.items() if not task.of_tokens])
def task(request):
    return TASKS[request.param]


def test_outputs_are_those_of_the_section(task):
    outputs = task.decode(tf.constant(LOGITS), LABELS, {})
    assert {name: value.dtype.name for name, value in outputs.items()} == task.section.outputs
    assert all(value.shape[0] == len(LOGITS) for value in outputs.values())


def test_answers_are_plain_data_of_the_outputs(task):
    outputs = task.decode(tf.constant(LOGITS), LABELS, {})
    rows = answers(task, {name: value.numpy() for name, value in outputs.items()}, LABELS)
    numbers = task.activate(LOGITS, {})
    assert len(rows) == len(LOGITS)
    for index, (row, expected) in enumerate(zip(rows, numbers, strict=True)):
        assert list(row[task.output]) == LABELS
        np.testing.assert_allclose(list(row[task.output].values()), expected, atol=1e-6)
        if "label" not in outputs:
            continue
        label = outputs["label"].numpy()[index]
        predicted = "|".join(row["labels"]) if "chosen" in task.section.outputs else row["label"]
        assert predicted.encode() == label


def test_a_smaller_change_than_the_margin_leaves_the_answer(task):
    if set(task.section.outputs) == {task.output}:
        assert np.isinf(task.margin({task.output: LOGITS}, {})).all()  # it has only numbers
        return
    probabilities = task.activate(LOGITS, {})
    margin = task.margin({"probabilities": probabilities}, {})

    def predicted(p):
        return p >= 0.5 if "chosen" in task.section.outputs else p == p.max(axis=1, keepdims=True)

    signs = np.where(predicted(probabilities), -1, 1)
    for share, same in ((0.99, True), (1.01, False)):
        changed = predicted(probabilities + share * margin[:, None] * signs)
        equal = (changed == predicted(probabilities)).all(axis=1)
        assert equal.all() if same else not equal.any()


def test_activation_gives_the_numbers_of_the_answer(task):
    actual = task.activation({})(LOGITS)
    np.testing.assert_allclose(actual, task.activate(LOGITS, {}), atol=1e-6)
