"""Loss, head, class weights and decoding against numpy and the Keras originals."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfft.backbones.pooling import Pooling
from tfft.config.tasks import TextClassification
from tfft.evaluation.metrics import softmax
from tfft.spec import Backbone, Feature, HeadStyle
from tfft.tasks import TASKS
from tfft.tasks.classification import CrossEntropy
from tfft.tasks.heads import ClassificationHead
from tfft.utils.errors import UserError

TASK = TASKS["text_classification"]


@pytest.fixture
def case():
    generator = np.random.default_rng(0)
    return generator.integers(0, 4, 12), generator.normal(size=(12, 4)).astype(np.float32)


def test_cross_entropy_equals_its_definition(case):
    labels, logits = case
    expected = -np.log(softmax(logits)[np.arange(12), labels])
    assert float(CrossEntropy()(labels, logits)) == pytest.approx(expected.mean(), rel=1e-5)


def test_label_smoothing_matches_keras(case):
    labels, logits = case
    reference = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    expected = float(reference(np.eye(4)[labels], logits))
    assert float(CrossEntropy(label_smoothing=0.1)(labels, logits)) == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_matches_keras(case, gamma):
    labels, logits = case
    reference = keras.losses.CategoricalFocalCrossentropy(
        alpha=1.0, gamma=gamma, from_logits=True, reduction="sum_over_batch_size"
    )
    expected = float(reference(np.eye(4)[labels], logits))
    assert float(CrossEntropy(gamma=gamma)(labels, logits)) == pytest.approx(expected, rel=1e-4)


def test_focal_gradient_is_finite_at_probability_one():
    logits = tf.constant([[80.0, -80.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = CrossEntropy(gamma=0.5)(np.array([0]), logits)
    assert np.isfinite(tape.gradient(loss, logits)).all()


def test_class_weights():
    ids = np.array([0, 0, 0, 1])
    names = ["a", "b"]
    balanced = TASK.row_weights(TextClassification(class_weights="balanced"), names, ids)
    np.testing.assert_allclose(balanced, [4 / 6, 4 / 6, 4 / 6, 4 / 2])
    explicit = TASK.row_weights(TextClassification(class_weights={"b": 3.0}), names, ids)
    np.testing.assert_allclose(explicit, [1.0, 1.0, 1.0, 3.0])
    assert TASK.row_weights(TextClassification(), names, ids) is None
    with pytest.raises(UserError, match="'bb' is not a class"):
        TASK.row_weights(TextClassification(class_weights={"bb": 3.0}), names, ids)


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_pooling_ignores_padding(pooling):
    classification_head = ClassificationHead(3, "tanh", 0.0, name="head")

    def head(x, mask):
        return classification_head(Pooling(pooling)(x, mask))

    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    logits = np.asarray(head(x, mask))
    changed_x = x.copy()
    changed_x[0, 3:] = 9.0
    np.testing.assert_array_equal(logits, head(changed_x, mask))
    vector = x[:, 0] if pooling == "first" else (x * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]
    hidden = np.tanh(
        vector @ np.asarray(classification_head.dense.kernel)
        + np.asarray(classification_head.dense.bias)
    )
    expected = hidden @ np.asarray(classification_head.logits.kernel) + np.asarray(
        classification_head.logits.bias
    )
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_missing_feature_is_an_error():
    tokens = keras.Input([None, 4])
    model = keras.Model(tokens, {"sequence": tokens})
    backbone = Backbone(model, (), HeadStyle("first"), "", {})
    assert backbone.features == {"sequence": Feature(4, "BTD")}
    with pytest.raises(UserError, match="no 'pooled' feature"):
        TASK.head(backbone, TextClassification(pooling="pooled"), ["a", "b"])


def test_decode_casts_and_picks_the_argmax(case):
    _, logits = case
    decoded = TASK.decode(tf.constant(logits, tf.bfloat16), ["a", "b", "c", "d"], {})
    assert decoded["probabilities"].dtype == tf.float32 and decoded["label"].dtype == tf.string
    expected = np.array(["a", "b", "c", "d"])[
        np.asarray(tf.cast(tf.constant(logits, tf.bfloat16), tf.float32)).argmax(1)
    ]
    assert [v.decode() for v in decoded["label"].numpy()] == expected.tolist()


@pytest.mark.parametrize("kind", ["mse", "smooth_l1", "huber"])
def test_probability_errors_match_numpy(kind):
    generator = np.random.default_rng(6)
    logits, ids = generator.normal(0, 2, (8, 4)).astype(np.float32), generator.integers(0, 4, 8)
    actual = TASK.loss(TextClassification(loss=kind, delta=0.3)).call(ids, logits)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    error = np.abs(p - np.eye(4)[ids])
    huber = np.where(error <= 0.3, error**2 / 2, 0.3 * (error - 0.15)).sum(1)
    expected = {"mse": (error**2).sum(1), "huber": huber, "smooth_l1": huber / 0.3}[kind]
    assert (error > 0.3).any()
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
