"""Losses and answers of a tagger."""

import numpy as np
import pytest
import tensorflow as tf

from tfft.config import TaskConfig, parse
from tfft.tasks import TASKS
from tfft.utils.errors import UserError

TASK = TASKS["image_multilabel"]
LOGITS = np.array([[2.0, -1.0, 0.5], [-3.0, 0.0, 30.0]], np.float32)
TRUTH = np.array([[1, 0, 1], [0, 1, 0]], np.float32)
# -log p and -log (1 - p), in float64
NATURAL = [np.log1p(np.exp(sign * LOGITS.astype(np.float64))) for sign in (-1, 1)]


def loss(**settings):
    made = TASK.loss(TaskConfig(name="image_multilabel", **settings))
    return made, made.call(tf.constant(TRUTH), tf.constant(LOGITS)).numpy()


def test_cross_entropy_by_hand():
    yes, no = NATURAL
    wanted = (TRUTH * yes + (1 - TRUTH) * no).mean(1)
    made, found = loss()
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert float(made(TRUTH, LOGITS)) == pytest.approx(wanted.mean(), rel=1e-4)
    smooth = 0.8 * TRUTH + 0.1
    wanted = (smooth * yes + (1 - smooth) * no).mean(1)
    np.testing.assert_allclose(loss(label_smoothing=0.2)[1], wanted, rtol=1e-4)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_by_hand_and_with_a_gradient_everywhere(gamma):
    loss_of_right = np.where(TRUTH > 0, *NATURAL)
    wanted = ((1 - np.exp(-loss_of_right)) ** gamma * loss_of_right).mean(1)
    made, found = loss(loss="focal", focal_gamma=gamma)
    np.testing.assert_allclose(found, wanted, rtol=1e-3)
    x = tf.constant([[200.0, -200.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = made.call(tf.constant([[1.0, 0.0, 1.0]]), x)
    assert np.isfinite(tape.gradient(value, x).numpy()).all()


def test_decoded_in_the_graph():
    limits = np.array([0.5, 0.4, 0.9])
    answer = tf.function(lambda x: TASK.decode(x, ["a", "b c", "ü"], limits))(tf.constant(LOGITS))
    assert [label.decode() for label in answer["label"].numpy()] == ["a", "b c|ü"]
    np.testing.assert_array_equal(answer["chosen"].numpy(), [[1, 0, 0], [0, 1, 1]])
    nothing = TASK.decode(tf.constant([[-9.0, -9.0]]), ["a", "b"])
    assert nothing["label"].numpy()[0] == b""


def test_probabilities_and_back():
    np.testing.assert_allclose(
        TASK.to_logits(TASK.probabilities(LOGITS[:1])), LOGITS[:1], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": {"name": "text_multilabel", "loss": "mse"}}, "is for one class a row"),
        ({"task": {"name": "text_multilabel", "class_weights": "balanced"}}, "loss: focal"),
        ({"train": {"metric": "accuracy"}}, "train.metric: text_multilabel has mean_average"),
        ({"regularization": {"r_drop": {}}}, "text_multilabel supports neither r_drop nor"),
        ({"task": {}, "train": {"metric": "micro_f1"}}, "text_classification has accuracy"),
    ],
)
def test_what_does_not_go_together(change, words):
    config = {
        "data": {"train": "rows.csv"},
        "model": {"backbone": "hf:x"},
        "task": {"name": "text_multilabel"},
    }
    assert parse(config).train.metric == "mean_average_precision"
    with pytest.raises(UserError, match=words):
        parse({**config, **change})
