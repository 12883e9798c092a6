"""Losses of named terms: the mean of the whole batch, however it is divided."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfft.config import DistributeConfig
from tfft.distribute import strategies
from tfft.model import Loss, Model
from tfft.regularizers.r_drop import RDrop

# Batches of 8: the last one has a single row, so that the second replica has none.
ROWS, TOKENS, CLASSES, BATCH = 17, 5, 3, 8
IGNORED = -100


def data():
    generator = np.random.default_rng(3)
    x = generator.normal(size=(ROWS, TOKENS, 4)).astype(np.float32)
    tags = generator.integers(0, CLASSES, (ROWS, TOKENS))
    tags[generator.random((ROWS, TOKENS)) < 0.4] = IGNORED
    tags[:6] = IGNORED  # the first replica has no token that counts in the first batch
    return x, {"tags": tags, "numbers": generator.normal(size=ROWS).astype(np.float32)}


class TagsAndNumbers(Loss):
    """Cross-entropy over the tokens that count, and weighted squared errors over the rows."""

    def __init__(self):
        self.weights = {"tags": 1.0, "numbers": 0.5}

    def counts(self, y, weight):
        # Keras gives each target the weights of the rows.
        weight = tf.ones_like(y["numbers"]) if weight is None else weight["numbers"]
        return {"tags": tf.math.count_nonzero(y["tags"] != IGNORED), "numbers": sum_of(weight)}

    def sums(self, y, y_pred, weight):
        is_counted = y["tags"] != IGNORED
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            tf.where(is_counted, y["tags"], 0), tf.cast(y_pred["tags"], tf.float32)
        )
        errors = tf.square(y["numbers"] - tf.cast(y_pred["numbers"][:, 0], tf.float32))
        weight = tf.ones_like(errors) if weight is None else weight["numbers"]
        return {
            "tags": sum_of(tf.where(is_counted, losses, 0.0)),
            "numbers": sum_of(errors * tf.cast(weight, errors.dtype)),
        }


def sum_of(values):
    return tf.reduce_sum(values)


class MeanActivity(keras.layers.Layer):
    """Adds a mean over the rows, which is NaN without any."""

    def call(self, x):
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(x)))
        return x


def build(dropout=0.0, activity=False) -> Model:
    keras.utils.set_random_seed(0)
    x = keras.Input([TOKENS, 4])
    hidden = keras.layers.Dense(6, activation="tanh", kernel_regularizer="l2", name="hidden")(x)
    if activity:
        hidden = MeanActivity()(hidden)
    hidden = keras.layers.Dropout(dropout)(hidden)
    outputs = {
        "tags": keras.layers.Dense(CLASSES, name="tags")(hidden),
        "numbers": keras.layers.Dense(1, name="numbers")(hidden[:, 0]),
    }
    return Model(x, outputs)


def train(strategy=None, weighted=False, batch=BATCH, options=None, **compiled):
    """Return weights, history and the results of `evaluate` after two epochs."""
    x, y = data()
    weight = np.linspace(0.5, 2, ROWS).astype(np.float32) if weighted else None
    with (strategy or tf.distribute.get_strategy()).scope():
        model = build()
        model.compile(keras.optimizers.SGD(0.1), TagsAndNumbers(), jit_compile=False, **compiled)
    model.configure(**(options or {}))
    fit = {"sample_weight": weight, "shuffle": False, "verbose": 0}
    history = model.fit(x, y, batch_size=BATCH, epochs=2, **fit).history
    results = model.evaluate(
        x, y, sample_weight=weight, batch_size=batch, verbose=0, return_dict=True
    )
    return {v.path: np.array(v.numpy()) for v in model.weights}, history, results


@functools.cache
def trained(weighted=False):
    """Return what `train` does on one device, which the tests only read."""
    return train(weighted=weighted)


def assert_equal(actual, expected):
    for side in (0, 1, 2):
        assert actual[side].keys() == expected[side].keys()
        for name, value in expected[side].items():
            np.testing.assert_allclose(actual[side][name], value, rtol=2e-5, atol=1e-6)


@pytest.fixture(scope="module")
def mirrored():
    config = DistributeConfig(strategy="mirrored", devices=["CPU:0", "CPU:1"])
    return strategies.setup(config, 0, True)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "weighted"])
def reference(request):
    """Whether rows have weights, and the same training by the definition of the loss."""
    x, y = data()
    weight = np.linspace(0.5, 2, ROWS).astype(np.float32) if request.param else np.ones(ROWS)
    model = build()
    optimizer = keras.optimizers.SGD(0.1)
    history = {"loss": [], "tags": [], "numbers": []}
    for _ in range(2):
        steps = []
        for start in range(0, ROWS, BATCH):
            rows = slice(start, start + BATCH)
            with tf.GradientTape() as tape:
                outputs = model(x[rows], training=True)
                is_counted = y["tags"][rows] != IGNORED
                target = tf.one_hot(np.where(is_counted, y["tags"][rows], 0), CLASSES)
                log_p = tf.nn.log_softmax(outputs["tags"])
                tags = -sum_of(tf.reduce_sum(log_p * target, -1) * is_counted)
                errors = tf.square(y["numbers"][rows] - outputs["numbers"][:, 0])
                errors = sum_of(errors * weight[rows].astype(np.float32))
                counts = max(1, is_counted.sum()), weight[rows].sum()
                extra = sum(model.losses)
                loss = tags / counts[0] + 0.5 * errors / float(counts[1]) + extra
            values = [v.value for v in model.trainable_variables]
            optimizer.apply(tape.gradient(loss, values), model.trainable_variables)
            num_rows = len(is_counted)
            sums = (
                float(tags),
                is_counted.sum(),
                float(errors),
                counts[1],
                float(extra) * num_rows,
            )
            steps.append(sums)
        total = np.array(steps).sum(0)
        history["tags"].append(total[0] / total[1])
        history["numbers"].append(total[2] / total[3])
        means = history["tags"][-1] + 0.5 * history["numbers"][-1]
        history["loss"].append(means + total[4] / ROWS)
    return request.param, {v.path: np.array(v.numpy()) for v in model.weights}, history


def test_terms_are_means_over_what_they_count(reference):
    weighted, expected, expected_history = reference
    weights, history, _ = trained(weighted)
    for path, value in expected.items():
        np.testing.assert_allclose(weights[path], value, rtol=2e-5, atol=1e-6)
    assert history.keys() == expected_history.keys()
    for name, values in expected_history.items():
        np.testing.assert_allclose(history[name], values, rtol=2e-5)


# The definition is compared with weights and without.
@pytest.mark.parametrize("weighted", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_parts_add_up(mirrored, weighted):
    expected = trained(weighted)
    assert_equal(train(weighted=weighted, micro_batch=3), expected)
    assert_equal(train(mirrored, weighted), expected)
    assert_equal(train(mirrored, weighted, micro_batch=2), expected)
    assert_equal(train(weighted=weighted, batch=5), expected)  # also the loss of `evaluate`


def test_eager_mode_and_xla_compute_the_same():
    expected = trained()
    assert_equal(train(run_eagerly=True), expected)
    assert_equal(train(options={"jit_compile": True}), expected)


def test_a_replica_without_rows_adds_nothing(mirrored):
    x, y = data()
    values = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            model = build(activity=True)
            model.compile(keras.optimizers.SGD(0.1), TagsAndNumbers(), jit_compile=False)
        model.fit(x[-1:], {k: v[-1:] for k, v in y.items()}, batch_size=BATCH, verbose=0)
        assert model.report.skipped == 0
        values.append([np.array(v.numpy()) for v in model.weights])
    for one, two in zip(*values, strict=True):
        np.testing.assert_allclose(two, one, rtol=2e-5, atol=1e-6)


def test_r_drop_divides_by_the_rows():
    """The divergence of a loss does not depend on what its terms count."""

    class Scaled(Loss):
        def __init__(self, factor):
            self.factor, self.weights = factor, {"errors": 1.0}

        def counts(self, y, weight):
            return {"errors": self.factor * tf.cast(tf.size(y), tf.float32)}

        def sums(self, y, y_pred, weight):
            return {"errors": self.factor * sum_of(tf.square(y - y_pred[:, 0]))}

    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    y = np.arange(8, dtype=np.float32)
    losses = []
    for factor in (1.0, 100.0):
        keras.utils.set_random_seed(0)
        inputs = keras.Input([4])
        model = Model(inputs, keras.layers.Dense(2)(keras.layers.Dropout(0.5)(inputs)))
        model.compile(keras.optimizers.SGD(0.01), Scaled(factor), jit_compile=False)
        model.configure(consistency=RDrop(1.0))
        model.fit(x, y, batch_size=8, verbose=0)
        losses.append(model.report.loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_compiling_again_replaces_the_loss():
    x, y = data()
    model = build()
    model.compile("sgd", {"tags": None, "numbers": "mse"}, jit_compile=False)
    model.fit(x, y, batch_size=BATCH, verbose=0)
    model.compile("sgd", TagsAndNumbers(), jit_compile=False)
    history = model.fit(x, y, batch_size=BATCH, verbose=0).history
    assert set(history) == {"loss", "tags", "numbers"}
    model.compile("sgd", {"tags": None, "numbers": "mse"}, jit_compile=False)
    assert "tags" not in model.fit(x, y, batch_size=BATCH, verbose=0).history


def test_mistakes_are_errors():
    loss = TagsAndNumbers()
    with pytest.raises(ValueError, match="attribute `weights`"):
        build().compile("sgd", loss, loss_weights={"tags": 2.0})
    for name in ("rows", "loss"):
        loss.weights = {name: 1.0}
        with pytest.raises(ValueError, match=f"must not be named {name}"):
            build().compile("sgd", loss)
    loss.scope = "bach"
    with pytest.raises(ValueError, match=r"must be rows or batch\. Received: 'bach'"):
        build().compile("sgd", loss)
    loss.scope, loss.weights = "rows", {"tags": 1.0}
    model = build()
    model.compile("sgd", loss, jit_compile=False)
    with pytest.raises(ValueError, match=r"terms \['tags'\]. Received: \['numbers', 'tags'\]"):
        model.fit(*data(), batch_size=BATCH, verbose=0)
