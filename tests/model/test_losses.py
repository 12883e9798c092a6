"""Losses of named terms: the mean of the whole batch, however it is divided."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfft.config import DistributeConfig
from tfft.distribute import strategies
from tfft.model import Loss, Model

ROWS, TOKENS, CLASSES = 22, 5, 3  # the last batch of 8 has 6 rows
IGNORED = -100


def data():
    generator = np.random.default_rng(3)
    x = generator.normal(size=(ROWS, TOKENS, 4)).astype(np.float32)
    tags = generator.integers(0, CLASSES, (ROWS, TOKENS))
    tags[generator.random((ROWS, TOKENS)) < 0.4] = IGNORED
    tags[:8] = IGNORED  # the first batch has no token that counts
    return x, {"tags": tags, "numbers": generator.normal(size=ROWS).astype(np.float32)}


class TagsAndNumbers(Loss):
    """Cross-entropy over the tokens that count, and squared errors over the rows."""

    def __init__(self):
        self.weights = {"tags": 1.0, "numbers": 0.5}

    def counts(self, y, weight):
        is_counted = tf.cast(y["tags"] != IGNORED, tf.float32)
        return {
            "tags": tf.reduce_sum(is_counted),
            "numbers": tf.cast(tf.size(y["numbers"]), tf.float32),
        }

    def sums(self, y, y_pred, weight):
        is_counted = y["tags"] != IGNORED
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            tf.where(is_counted, y["tags"], 0), y_pred["tags"]
        )
        errors = tf.square(y["numbers"] - y_pred["numbers"][:, 0])
        return {
            "tags": tf.reduce_sum(tf.where(is_counted, losses, 0.0)),
            "numbers": tf.reduce_sum(errors),
        }


class InBatchNegatives(Loss):
    """Each row's vector should be most similar to the target of its own row."""

    scope = "batch"

    def __init__(self):
        self.weights = {"contrastive": 1.0}

    def counts(self, y, weight):
        return {"contrastive": tf.cast(tf.shape(y)[0], tf.float32)}

    def sums(self, y, y_pred, weight):
        similarities = tf.matmul(y_pred, y, transpose_b=True)
        own = tf.range(tf.shape(y)[0])
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(own, similarities)
        return {"contrastive": tf.reduce_sum(losses)}


def two_heads() -> Model:
    keras.utils.set_random_seed(0)
    x = keras.Input([TOKENS, 4])
    hidden = keras.layers.Dense(6, activation="tanh", kernel_regularizer="l2", name="hidden")(x)
    outputs = {
        "tags": keras.layers.Dense(CLASSES, name="tags")(hidden),
        "numbers": keras.layers.Dense(1, name="numbers")(hidden[:, 0]),
    }
    return Model(x, outputs)


def vectors() -> Model:
    keras.utils.set_random_seed(0)
    x = keras.Input([TOKENS, 4])
    return Model(x, keras.layers.Dense(3, name="vector")(keras.layers.Flatten()(x)))


def train(build, loss, strategy=None, **options):
    """Return weights, history and the results of `evaluate` after two epochs."""
    x, y = data()
    if loss.scope == "batch":
        y = np.random.default_rng(4).normal(size=(ROWS, 3)).astype(np.float32)
    with (strategy or tf.distribute.get_strategy()).scope():
        model = build()
        model.compile(keras.optimizers.SGD(0.1), loss, jit_compile=False, **options)
    history = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history
    results = model.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
    return {v.path: np.array(v.numpy()) for v in model.weights}, history, results


def assert_equal(actual, expected):
    for side in (0, 1, 2):
        assert actual[side].keys() == expected[side].keys()
        for name, value in expected[side].items():
            np.testing.assert_allclose(actual[side][name], value, rtol=2e-5, atol=1e-6)


@pytest.fixture(scope="module")
def mirrored():
    config = DistributeConfig(strategy="mirrored", devices=["CPU:0", "CPU:1"])
    return strategies.setup(config, 0, True)


@pytest.fixture(scope="module")
def reference():
    """The same training in float64 by automatic differentiation of the definition."""
    x, y = data()
    model = two_heads()
    optimizer = keras.optimizers.SGD(0.1)
    epochs = []
    for _ in range(2):
        steps = []
        for start in range(0, ROWS, 8):
            rows = slice(start, start + 8)
            with tf.GradientTape() as tape:
                outputs = model(x[rows], training=True)
                is_counted = y["tags"][rows] != IGNORED
                log_p = tf.nn.log_softmax(outputs["tags"])
                target = tf.one_hot(np.where(is_counted, y["tags"][rows], 0), CLASSES)
                losses = -tf.reduce_sum(log_p * target, -1) * is_counted
                tags = tf.reduce_sum(losses) / max(1, is_counted.sum())
                errors = tf.square(y["numbers"][rows] - outputs["numbers"][:, 0])
                loss = tags + 0.5 * tf.reduce_mean(errors) + sum(model.losses)
            values = [v.value for v in model.trainable_variables]
            optimizer.apply(tape.gradient(loss, values), model.trainable_variables)
            steps.append((float(tf.reduce_sum(losses)), is_counted.sum(), errors.numpy().sum()))
        epochs.append(np.array(steps).sum(0))
    weights = {v.path: np.array(v.numpy()) for v in model.weights}
    tags = [total[0] / total[1] for total in epochs]
    return weights, tags, [total[2] / ROWS for total in epochs]


def test_terms_are_means_over_what_they_count(reference):
    weights, history, _ = train(two_heads, TagsAndNumbers())
    for path, value in reference[0].items():
        np.testing.assert_allclose(weights[path], value, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(history["tags"], reference[1], rtol=1e-5)
    np.testing.assert_allclose(history["numbers"], reference[2], rtol=1e-5)
    assert {*history} == {"loss", "tags", "numbers"}


@pytest.mark.parametrize("size", [1, 3, 8])
def test_micro_batches_add_up(size):
    expected = train(two_heads, TagsAndNumbers())
    assert_equal(train(two_heads, TagsAndNumbers(), micro_batch=size), expected)


def test_replicas_add_up(mirrored):
    expected = train(two_heads, TagsAndNumbers())
    # Each batch of the first replica may have another number of tokens that count.
    assert_equal(train(two_heads, TagsAndNumbers(), mirrored), expected)
    assert_equal(train(two_heads, TagsAndNumbers(), mirrored, micro_batch=3), expected)


def test_a_loss_over_the_batch_sees_the_rows_of_all_replicas(mirrored):
    loss = InBatchNegatives()
    expected = train(vectors, loss)
    assert_equal(train(vectors, loss, mirrored), expected)
    assert {*expected[1]} == {"loss"}  # one term is the loss


def test_a_loss_over_the_batch_refuses_micro_batches():
    with pytest.raises(ValueError, match="cannot be split"):
        train(vectors, InBatchNegatives(), micro_batch=2)


def test_xla_and_eager_mode_compute_the_same():
    expected = train(two_heads, TagsAndNumbers())
    assert_equal(train(two_heads, TagsAndNumbers(), run_eagerly=True), expected)
    x, y = data()
    model = two_heads()
    model.compile(keras.optimizers.SGD(0.1), TagsAndNumbers(), jit_compile=False)
    model.configure(jit_compile=True)
    history = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history
    np.testing.assert_allclose(history["loss"], expected[1]["loss"], rtol=2e-5)


def test_a_term_named_rows_is_refused():
    loss = TagsAndNumbers()
    loss.weights = {"rows": 1.0}
    with pytest.raises(ValueError, match="must not be named 'rows'"):
        two_heads().compile("sgd", loss)
