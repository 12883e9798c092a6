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
        sums = np.zeros(4)
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
                count = float(weight[rows].sum() if weighted else len(rows))
                norm = tf.reduce_mean(tf.reduce_sum(output["query"] ** 2, 1))
                layers = sum(model.losses)
                loss = total / count + 0.1 * norm + layers
            values = [v.value for v in model.trainable_variables]
            optimizer.apply(tape.gradient(loss, values), model.trainable_variables)
            sums += [float(total), count, len(rows) * float(norm), len(rows) * float(layers)]
        contrast, norm = sums[0] / sums[1], sums[2] / ROWS
        means = contrast + 0.1 * norm + sums[3] / ROWS, contrast, norm
        for name, value in zip(history, means, strict=True):
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


def test_gradients_are_those_of_the_loss_with_its_dropout():
    """A small step changes the loss by what the gradients say, if both passes drop the same."""
    rate = 1e-3
    compiled = {"loss": InBatchNegatives(), "jit_compile": False, "micro_batch": 3}
    x, y, _ = data()
    models = [build(dropout=0.5) for _ in range(2)]  # both draw the same masks in their first step
    models[0].compile(keras.optimizers.SGD(rate), **compiled)
    before = [np.array(v.numpy()) for v in models[0].trainable_variables]
    models[0].train_on_batch(x, y)
    for new, old in zip(models[0].trainable_variables, models[1].trainable_variables, strict=True):
        old.assign(new)
    models[1].compile(keras.optimizers.SGD(0.0), **compiled)
    models[1].train_on_batch(x, y)
    gradients = [
        (b - v.numpy()) / rate for b, v in zip(before, models[0].trainable_variables, strict=True)
    ]
    expected = rate * sum((gradient**2).sum() for gradient in gradients)
    assert models[0].report.loss - models[1].report.loss == pytest.approx(expected, rel=0.02)


class Recorder(keras.layers.Layer):
    """Appends what passes through it in training to `seen`."""

    def __init__(self, seen):
        super().__init__()
        self.append = seen.append

    def call(self, x, training=None):
        if training:
            tf.numpy_function(self.append, [x], [])
        return x


def test_all_parts_of_a_batch_draw_other_masks(mirrored):
    seen = []
    with mirrored.scope():
        keras.utils.set_random_seed(0)
        inputs = keras.Input([64])
        hidden = Recorder(seen)(keras.layers.Dropout(0.5)(inputs))
        model = Model(inputs, {n: keras.layers.Dense(2)(hidden) for n in ("query", "document")})
        model.compile("sgd", InBatchNegatives(), jit_compile=False, micro_batch=2)
    model.fit(np.ones((8, 64), np.float32), np.arange(8), batch_size=8, verbose=0)
    masks, counts = np.unique([v > 0 for v in seen], axis=0, return_counts=True)
    # Two replicas of two micro-batches, each in two passes.
    assert len(masks) == 4 and counts.tolist() == [2, 2, 2, 2]


def test_moving_statistics_are_updated_once():
    model = {"batch_norm": True}
    recorded, cached = (train(model=model, micro_batch=m) for m in (None, BATCH))
    assert_equal(cached, recorded)
    assert not np.allclose(recorded[0]["norm/moving_mean"], 0)


class Selected(Loss):
    """Reads some rows of an output that has two names, where targets of a small type say so."""

    scope, weights = "batch", {"errors": 1.0}

    def counts(self, y, weight):
        return {"errors": tf.math.count_nonzero(y)}

    def sums(self, y, y_pred, weight):
        rows = tf.where(y)[:, 0]
        errors = tf.gather(y_pred["query"], rows) - tf.gather(y_pred["document"][::-1], rows)
        return {"errors": tf.reduce_sum(tf.square(tf.cast(errors, tf.float32) - 1))}


@pytest.mark.parametrize("dtype", [np.bool_, np.int8])
def test_types_that_collectives_do_not_take_and_an_output_with_two_names(mirrored, dtype):
    x, y, _ = data()
    results = []
    for strategy, micro_batch in ((tf.distribute.get_strategy(), None), (mirrored, 2)):
        with strategy.scope():
            keras.utils.set_random_seed(0)
            inputs = keras.Input([WIDTH])
            policy = "mixed_bfloat16" if dtype == np.int8 else "float32"
            hidden = keras.layers.Dense(3, dtype=policy)(inputs)
            model = Model(inputs, {"query": hidden, "document": hidden})
            model.compile(
                keras.optimizers.SGD(0.1), Selected(), jit_compile=False, micro_batch=micro_batch
            )
        fit = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
        history = model.fit(x, (y % 2).astype(dtype), **fit).history
        weights = [np.array(v.numpy()) for v in model.weights]
        results.append([np.array(history["loss"]), *weights])
    tolerance = 2e-2 if dtype == np.int8 else 2e-5  # bfloat16 has 8 bits
    for actual, expected in zip(*results, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance / 20)


class MeanActivity(keras.layers.Layer):
    """Adds a loss of what it reads, which differs from replica to replica."""

    def call(self, x):
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(x)))
        return x


def test_losses_of_layers_are_those_of_the_replica(mirrored):
    def layers_loss(strategy):
        x, y, _ = data()
        with strategy.scope():
            model = build()
            hidden = MeanActivity()(model.get_layer("hidden").output)
            outputs = {n: model.get_layer(n)(hidden) for n in ("query", "document")}
            model = Model(model.input, outputs)
            model.compile(keras.optimizers.SGD(0.1), InBatchNegatives(), jit_compile=False)
        model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
        return [model.report.loss, *(np.array(v.numpy()) for v in model.weights)]

    # Both replicas have 4 rows of each full batch: the mean of their means is that of the batch.
    for actual, expected in zip(
        layers_loss(mirrored), layers_loss(tf.distribute.get_strategy()), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_several_passes_over_a_batch_are_refused(micro_batch):
    x, y, _ = data()
    model = build(dropout=0.1)
    model.compile("sgd", InBatchNegatives(), jit_compile=False, micro_batch=micro_batch)
    model.configure(consistency=RDrop(1.0))
    with pytest.raises(ValueError, match="scope 'batch' does not go with the option consistency"):
        model.fit(x, y, verbose=0)
