"""Losses, decoding and config checks of multi-label tasks."""

import numpy as np
import pytest
import tensorflow as tf

from tfft.config import parse
from tfft.tasks import TASKS
from tfft.utils.errors import UserError

TASK = TASKS["image_multilabel"]
LOGITS = np.array([[2.0, -1.0, 0.5], [-3.0, 0.0, 30.0]], np.float32)
TRUTH = np.array([[1, 0, 1], [0, 1, 0]], np.float32)
# -log p and -log (1 - p) in float64.
NEGATIVE_LOGS = [np.log1p(np.exp(sign * LOGITS.astype(np.float64))) for sign in (-1, 1)]


def compute_loss(**settings):
    loss = TASK.loss(TASK.section(**settings))
    return loss, loss.call(tf.constant(TRUTH), tf.constant(LOGITS)).numpy()


def test_cross_entropy_equals_its_definition():
    positive, negative = NEGATIVE_LOGS
    expected = (TRUTH * positive + (1 - TRUTH) * negative).mean(1)
    loss, actual = compute_loss()
    np.testing.assert_allclose(actual, expected, rtol=1e-4)
    assert float(loss(TRUTH, LOGITS)) == pytest.approx(expected.mean(), rel=1e-4)
    smoothed = 0.8 * TRUTH + 0.1
    expected = (smoothed * positive + (1 - smoothed) * negative).mean(1)
    np.testing.assert_allclose(compute_loss(label_smoothing=0.2)[1], expected, rtol=1e-4)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_equals_its_definition_with_finite_gradients(gamma):
    loss_of_truth = np.where(TRUTH > 0, *NEGATIVE_LOGS)
    expected = ((1 - np.exp(-loss_of_truth)) ** gamma * loss_of_truth).mean(1)
    loss, actual = compute_loss(loss="focal", focal_gamma=gamma)
    np.testing.assert_allclose(actual, expected, rtol=1e-3)
    x = tf.constant([[200.0, -200.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = loss.call(tf.constant([[1.0, 0.0, 1.0]]), x)
    assert np.isfinite(tape.gradient(value, x).numpy()).all()


def test_decode_runs_in_the_graph():
    fitted = {"thresholds": np.array([0.5, 0.4, 0.9])}
    decoded = tf.function(lambda x: TASK.decode(x, ["a", "b c", "ü"], fitted))(tf.constant(LOGITS))
    assert [label.decode() for label in decoded["label"].numpy()] == ["a", "b c|ü"]
    np.testing.assert_array_equal(decoded["chosen"].numpy(), [[1, 0, 0], [0, 1, 1]])
    empty = TASK.decode(tf.constant([[-9.0, -9.0]]), ["a", "b"], {})
    assert empty["label"].numpy()[0] == b""


def test_average_of_two_passes_has_the_mean_probabilities():
    average = TASK.average([LOGITS, LOGITS[::-1]])
    expected = (TASK.activate(LOGITS, {}) + TASK.activate(LOGITS[::-1], {})) / 2
    np.testing.assert_allclose(TASK.activate(average, {}), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"task": {"name": "text_multilabel", "loss": "mse"}},
            "task.loss: must be one of cross_entropy, focal. Received",
        ),
        (
            {"task": {"name": "text_multilabel", "class_weights": "balanced"}},
            "task: `class_weights` is for one class a row; for rare labels use loss: focal",
        ),
        ({"train": {"metric": "accuracy"}}, "train.metric: must be one of mean_average"),
        ({"regularization": {"r_drop": {}}}, "regularization.r_drop: is for text_classification"),
        ({"task": {}, "train": {"metric": "micro_f1"}}, "train.metric: must be one of accuracy"),
    ],
)
def test_invalid_combinations_are_errors(change, message):
    config = {
        "data": {"train": "rows.csv"},
        "model": {"backbone": "hf:x"},
        "task": {"name": "text_multilabel"},
    }
    assert parse(config).train.metric == "mean_average_precision"
    with pytest.raises(UserError, match=message):
        parse({**config, **change})
