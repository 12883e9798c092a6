"""Losses over the rows of the global batch: the same training, however the batch is divided."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfft.config import DistributeConfig
from tfft.distribute import strategies
from tfft.model import Loss, Model
from tfft.regularizers.r_drop import RDrop

# Batches of 8: the last one has a single row, so that the second replica has none.
ROWS, WIDTH, BATCH, EPOCHS = 17, 6, 8, 2


class InBatchNegatives(Loss):
    """Each query finds its document among those of the batch, weighted by row; and their norms."""

    scope = "batch"

    def __init__(self):
        self.weights = {"contrast": 1.0, "norm": 0.1}

    def counts(self, y, weight):
        rows = tf.cast(tf.shape(y)[0], tf.float32)
        return {"contrast": rows if weight is None else tf.reduce_sum(weight), "norm": rows}

    def sums(self, y, y_pred, weight):
        query, document = (tf.cast(y_pred[name], tf.float32) for name in ("query", "document"))
        same = y[:, None] == y[None]  # rows of a group are not negatives of each other
        scores = tf.where(
            same & ~tf.eye(tf.shape(y)[0], dtype=tf.bool), -1e9, query @ tf.transpose(document)
        )
        contrast = -tf.linalg.diag_part(tf.nn.log_softmax(scores))
        contrast = contrast if weight is None else contrast * weight
        norms = tf.reduce_sum(tf.square(query), 1)
        return {"contrast": tf.reduce_sum(contrast), "norm": tf.reduce_sum(norms)}


def data():
    generator = np.random.default_rng(3)
    x = generator.normal(size=(ROWS, WIDTH)).astype(np.float32)
    return x, np.arange(ROWS) // 2, np.linspace(0.5, 2, ROWS).astype(np.float32)


def build(dropout=0.0, batch_norm=False) -> Model:
    keras.utils.set_random_seed(0)
    x = keras.Input([WIDTH])
    hidden = keras.layers.Dense(7, activation="tanh", kernel_regularizer="l2", name="hidden")(x)
    if batch_norm:
        hidden = keras.layers.BatchNormalization(name="norm")(hidden)
    hidden = keras.layers.Dropout(dropout)(hidden)
    names = "query", "document"
    return Model(x, {name: keras.layers.Dense(5, name=name)(hidden) for name in names})


def train(strategy=None, weighted=False, optimizer=None, options=None, model=None, **compiled):
    """Return weights, history and the results of `evaluate` after some epochs."""
    x, y, weight = data()
    weight = weight if weighted else None
    with (strategy or tf.distribute.get_strategy()).scope():
        model = build(**(model or {}))
        optimizer = keras.optimizers.SGD(0.1) if optimizer is None else optimizer()
        model.compile(optimizer, InBatchNegatives(), jit_compile=False, **compiled)
    model.configure(**(options or {}))
    fit = {"sample_weight": weight, "shuffle": False, "verbose": 0}
    history = model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, **fit).history
    results = model.evaluate(
        x, y, sample_weight=weight, batch_size=BATCH, verbose=0, return_dict=True
    )
    assert model.report.skipped == 0
    return {v.path: np.array(v.numpy()) for v in model.weights}, history, results


def assert_equal(actual, expected, rtol=2e-5):
    for side, expected_side in zip(actual, expected, strict=True):
        assert side.keys() == expected_side.keys()
        for name, value in expected_side.items():
            np.testing.assert_allclose(side[name], value, rtol=rtol, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def mirrored():
    config = DistributeConfig(strategy="mirrored", devices=["CPU:0", "CPU:1"])
    return strategies.setup(config, 0, True)


def by_definition(weighted):
    """Return weights and history of the same training, written out for whole batches."""
    x, y, weight = data()
    model, optimizer = build(), keras.optimizers.SGD(0.1)
    history = {"loss": [], "contrast": [], "norm": []}
    for _ in range(EPOCHS):
        sums = np.zeros(3)
        for start in range(0, ROWS, BATCH):
            rows = np.arange(ROWS)[start : start + BATCH]
            with tf.GradientTape() as tape:
                output = model(x[rows], training=True)
                total = 0.0
                for i, row in enumerate(rows):
                    scores = tf.linalg.matvec(output["document"], output["query"][i])
                    rivals = [j for j, other in enumerate(rows) if j == i or y[other] != y[row]]
                    nll = tf.reduce_logsumexp(tf.gather(scores, rivals)) - scores[i]
                    total += nll * (weight[row] if weighted else 1.0)
                contrast = total / float(weight[rows].sum() if weighted else len(rows))
                norm = tf.reduce_mean(tf.reduce_sum(output["query"] ** 2, 1))
                loss = contrast + 0.1 * norm + sum(model.losses)
            values = [v.value for v in model.trainable_variables]
            optimizer.apply(tape.gradient(loss, values), model.trainable_variables)
            sums += len(rows) * np.array([float(loss), float(contrast), float(norm)])
        for name, value in zip(history, sums / ROWS, strict=True):
            history[name].append(value)
    return {v.path: np.array(v.numpy()) for v in model.weights}, history


@pytest.mark.parametrize("weighted", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_rows_see_the_whole_batch(mirrored, weighted):
    expected = train(weighted=weighted)
    assert_equal(expected[:2], by_definition(weighted))
    assert_equal(train(weighted=weighted, micro_batch=3), expected)
    assert_equal(train(mirrored, weighted), expected)
    assert_equal(train(mirrored, weighted, micro_batch=2), expected)


@pytest.mark.slow  # the same sums in other modes
def test_eager_mode_and_xla_compute_the_same(mirrored):
    expected = train()
    assert_equal(train(run_eagerly=True), expected)
    assert_equal(train(run_eagerly=True, micro_batch=3), expected)
    assert_equal(train(options={"jit_compile": True}), expected)
    assert_equal(train(options={"jit_compile": True}, micro_batch=3), expected)
    assert_equal(train(mirrored, options={"jit_compile": True}), expected)


def test_the_scale_of_a_loss_scaler_is_divided_out():
    def scaled():
        return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), 1024.0)

    expected = train()
    assert_equal(train(optimizer=scaled), expected)
    assert_equal(train(optimizer=scaled, micro_batch=3), expected)


def test_both_passes_draw_the_same_dropout(mirrored):
    model = {"dropout": 0.5}
    for strategy in (None, mirrored):
        # One micro-batch: the first has the seeds of a batch that is not divided.
        recorded, cached = (train(strategy, model=model, micro_batch=m) for m in (None, BATCH))
        assert_equal(cached, recorded)
    # With other masks in the second pass, the gradients would not be those of the loss: a step
    # along them would change the loss by another amount than they say.
    x, y, _ = data()
    values = []
    for rate in (0.0, 1e-3):
        network = build(**model)
        network.compile(
            keras.optimizers.SGD(rate), InBatchNegatives(), jit_compile=False, micro_batch=3
        )
        before = [np.array(v.numpy()) for v in network.weights]
        network.train_on_batch(x, y)
        loss = network.report.loss
        if rate:
            gradients = [
                (b - v.numpy()) / rate
                for b, v in zip(before, network.weights, strict=True)
                if "seed" not in v.path
            ]
            values.append(sum((g**2).sum() for g in gradients) * rate)
            # The same draw again: a model with the seeds of the first step and the new weights.
            again = build(**model)
            again.compile(
                keras.optimizers.SGD(0.0), InBatchNegatives(), jit_compile=False, micro_batch=3
            )
            for old, new in zip(again.weights, network.weights, strict=True):
                if "seed" not in old.path:
                    old.assign(new)
            again.train_on_batch(x, y)
            values.append(loss - again.report.loss)
    assert values[1] == pytest.approx(values[0], rel=0.02)


def test_moving_statistics_are_updated_once():
    model = {"batch_norm": True}
    recorded, cached = (train(model=model, micro_batch=m) for m in (None, BATCH))
    assert_equal(cached, recorded)
    assert not np.allclose(recorded[0]["norm/moving_mean"], 0)


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_several_passes_over_a_batch_are_refused(micro_batch):
    x, y, _ = data()
    model = build(dropout=0.1)
    model.compile("sgd", InBatchNegatives(), jit_compile=False, micro_batch=micro_batch)
    model.configure(consistency=RDrop(1.0))
    with pytest.raises(ValueError, match="scope 'batch' does not go with the option consistency"):
        model.fit(x, y, verbose=0)
