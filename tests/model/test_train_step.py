"""The train step beside Keras' own, and what it does that Keras' cannot."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfft.config import DistributeConfig
from tfft.distribute import strategies
from tfft.model import Model, rematerialise
from tfft.model.seeds import generators
from tfft.spec import Stage

ROWS, TOKENS, CLASSES = 41, 7, 3


def data():
    generator = np.random.default_rng(0)
    inputs = {
        "ids": generator.integers(0, 50, (ROWS, TOKENS)).astype(np.int32),
        "mask": generator.random((ROWS, TOKENS)) > 0.2,  # bool, which Keras' fit cannot take
    }
    return inputs, generator.integers(0, CLASSES, ROWS), generator.random(ROWS).astype(np.float32)


class OneHot(keras.layers.Layer):
    """An embedding whose gradient is dense: Keras' optimizers are right for it."""

    def build(self, _):
        self.table = self.add_weight(shape=(50, 16), initializer="uniform", name="embeddings")

    def call(self, ids):
        return keras.ops.one_hot(ids, 50) @ self.table


def build(cls=Model, dropout=0.0, by_token=False):
    ids = keras.Input([None], dtype="int32", name="ids")
    mask = keras.Input([None], dtype="bool", name="mask")
    tokens = (
        keras.layers.Embedding(50, 16, name="tokens") if cls is Model else OneHot(name="tokens")
    )
    x = tokens(ids)
    x = x * keras.ops.cast(mask, "float32")[..., None]
    dense = keras.layers.Dense(32, activation="tanh", kernel_regularizer="l2", name="dense")
    x = keras.layers.Dropout(dropout, name="dropout")(dense(x))
    if not by_token:
        x = keras.layers.GlobalAveragePooling1D()(x)
    return cls({"ids": ids, "mask": mask}, keras.layers.Dense(CLASSES, name="logits")(x))


def cross_entropy(**options):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **options)


def weights(model):
    return {v.path: np.array(v.numpy()) for v in model.weights}


def trained(model, optimizer, weighted=False, loss=None, evaluated=False, **options):
    """Weights and history after three epochs, and what `evaluate` gives if that is asked for."""
    options = {"jit_compile": False, **options}
    model.compile(optimizer, loss or cross_entropy(), metrics=["accuracy"], **options)
    with model.distribute_strategy.scope():
        # Keras builds it while tracing, where ScheduleFreeAdamW begins anew in every step.
        model.optimizer.build(model.trainable_variables)
    x, y, weight = data()
    weight = weight if weighted else None
    fit = model.fit(x, y, sample_weight=weight, batch_size=16, epochs=3, shuffle=False, verbose=0)
    figures = model.evaluate(x, y, batch_size=16, verbose=0) if evaluated else None
    return weights(model), fit.history, figures


@pytest.fixture(scope="module")
def mirrored():
    config = DistributeConfig(strategy="mirrored", devices=["CPU:0", "CPU:1"])
    return strategies.setup(config, 0, False)


OPTIMIZERS = {
    "adamw": lambda: keras.optimizers.AdamW(1e-2, weight_decay=0.1),
    "clipping": lambda: keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=0.1),
    "clipvalue": lambda: keras.optimizers.SGD(0.1, clipvalue=1e-3),
    "accumulation": lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2),
    "ema": lambda: keras.optimizers.SGD(0.1, use_ema=True, ema_overwrite_frequency=3),
    "schedule-free": lambda: keras.optimizers.ScheduleFreeAdamW(1e-2),
    "muon": lambda: keras.optimizers.Muon(1e-2),
    "loss-scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW(1e-2)),
}


# Another clipping, other optimizers: what they are to equal is what the others show.
SLOW = ("clipvalue", "muon", "schedule-free")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in OPTIMIZERS]
)
def test_as_keras_on_one_device_and_so_on_two(name, mirrored):
    """Keras' own step on one device is the reference, its embedding's gradient being dense."""
    found = []
    for cls in (keras.Model, Model):
        keras.utils.set_random_seed(0)
        found.append(trained(build(cls), OPTIMIZERS[name](), evaluated=True))
    keras.utils.set_random_seed(0)
    with mirrored.scope():
        model, optimizer = build(), OPTIMIZERS[name]()
    found.append(trained(model, optimizer, evaluated=True))
    (expected, history, figures), *others = found
    for weights_, history_, figures_ in others:
        for path, value in expected.items():
            np.testing.assert_allclose(weights_[path], value, atol=3e-6, err_msg=path)
        np.testing.assert_allclose(history_["loss"], history["loss"], rtol=1e-5)
        np.testing.assert_allclose(history_["accuracy"], history["accuracy"], rtol=1e-6)
        np.testing.assert_allclose(figures_, figures, rtol=1e-5)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight"])
def test_losses_are_weighted_by_what_they_average_over(reduction, mirrored):
    """With sample weights, in micro-batches of unequal size, on two replicas: as in one piece."""
    found = []
    for scope, micro in ((None, None), (None, 5), (mirrored, 3)):
        keras.utils.set_random_seed(0)
        with (scope or tf.distribute.get_strategy()).scope():
            model, optimizer = build(), keras.optimizers.SGD(0.01)
        options = {"loss": cross_entropy(reduction=reduction), "micro_batch": micro}
        found.append(trained(model, optimizer, weighted=True, **options))
    keras.utils.set_random_seed(0)
    by_keras = build(keras.Model)
    loss = cross_entropy(reduction=reduction)
    expected = trained(by_keras, keras.optimizers.SGD(0.01), weighted=True, loss=loss)[0]
    for weights_, *_ in found:
        for path, value in expected.items():
            np.testing.assert_allclose(weights_[path], value, atol=1e-6, err_msg=path)


def test_a_loss_by_token_is_weighted_by_token(mirrored):
    """The replicas have unequal numbers of real tokens."""
    x, _, _ = data()
    y = np.random.default_rng(1).integers(0, CLASSES, (ROWS, TOKENS))
    real = x["mask"].astype(np.float32) * (np.arange(ROWS)[:, None] % 16 < 9)
    found = []
    for scope in (tf.distribute.get_strategy(), mirrored):
        keras.utils.set_random_seed(0)
        with scope.scope():
            model, optimizer = build(by_token=True), keras.optimizers.SGD(0.1)
        model.compile(optimizer, cross_entropy(reduction="mean_with_sample_weight"))
        model.fit(x, y, sample_weight=real, batch_size=16, shuffle=False, verbose=0)
        found.append(weights(model))
    for path, value in found[0].items():
        np.testing.assert_allclose(found[1][path], value, atol=1e-6, err_msg=path)


class Draws(keras.layers.Layer):
    """Adds nothing, and keeps what its generator drew in each replica."""

    def __init__(self):
        super().__init__(name="draws")
        self.seed_generator = keras.random.SeedGenerator(1)
        self.seen = self.add_weight(shape=(4,), trainable=False, name="seen")

    def call(self, x, training=False):
        if training:
            self.seen.assign(keras.random.uniform((4,), seed=self.seed_generator))
        return x


def test_replicas_draw_different_dropout(mirrored):
    with mirrored.scope():
        x = keras.Input([4])
        model = Model(x, keras.layers.Dense(1)(Draws()(x)))
        model.compile("sgd", "mse", jit_compile=False)
    model.fit(np.ones((8, 4)), np.ones((8, 1)), batch_size=8, verbose=0)
    drawn = [v.numpy() for v in model.get_layer("draws").seen.value.values]
    assert (drawn[0] != drawn[1]).all()
    plain = Draws()
    plain(np.ones((8, 4), np.float32), training=True)
    np.testing.assert_array_equal(drawn[0], plain.seen.numpy())  # the first as without a strategy
    states = [v.numpy() for v in generators(model)[0].state.value.values]
    np.testing.assert_array_equal(*states)


@pytest.mark.parametrize("xla", [False, True])
def test_rematerialised_it_learns_the_same(xla):
    """Dropout included: the mask of the second computation is that of the first."""
    found = []
    for remat in (False, True):
        keras.utils.set_random_seed(0)
        model = build(dropout=0.5)
        if remat:
            assert rematerialise(model, [Stage("dense", "dense/")]) == ["dense"]
        optimizer = keras.optimizers.SGD(0.1)
        found.append(trained(model, optimizer, jit_compile=xla)[0])
    for path, value in found[0].items():
        np.testing.assert_allclose(found[1][path], value, atol=1e-6, err_msg=path)


class Noisy(keras.layers.Layer):
    """A dense layer and dropout as one layer, so that both are computed again."""

    def __init__(self):
        super().__init__(name="noisy")
        self.dense = keras.layers.Dense(16, activation="tanh", name="dense")
        self.drop = keras.layers.Dropout(0.5, name="drop")
        self.again = 0

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x, training=False):
        self.again += 1
        return self.drop(self.dense(x), training=training)


def test_dropout_is_the_same_when_computed_again():
    found, calls = [], []
    for remat in (False, True):
        keras.utils.set_random_seed(0)
        x = keras.Input([8])
        noisy = Noisy()
        model = Model(x, keras.layers.Dense(1, name="out")(noisy(x)))
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
        if remat:
            assert rematerialise(model, [Stage("all", "noisy/")]) == ["noisy"]
        generator = np.random.default_rng(0)
        x, y = generator.normal(size=(64, 8)), generator.normal(size=(64, 1))
        noisy.again = 0
        model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
        found.append(weights(model))
        calls.append(noisy.again)
    assert calls[1] > calls[0]  # it was computed again
    for path, value in found[0].items():  # with another mask the gradients would be others
        np.testing.assert_allclose(found[1][path], value, atol=1e-6, err_msg=path)


def test_a_step_that_is_not_finite_changes_nothing():
    x, y, _ = data()
    model = build()
    model.compile(keras.optimizers.AdamW(1e-2), cross_entropy(), jit_compile=False)
    model.train_on_batch(x, y)
    assert (model.report.steps, model.report.skipped) == (1, 0)
    before = weights(model)
    slots = [np.array(v.numpy()) for v in model.optimizer.variables]
    model.train_on_batch(x, y, sample_weight=np.full(ROWS, np.nan))
    assert model.report.skipped == 1
    for path, value in weights(model).items():
        np.testing.assert_array_equal(value, before[path])
    for old, new in zip(slots, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


def test_several_steps_at_once_stop_where_the_data_ends(mirrored):
    """21 batches, 8 at once: 8, 8 and 5."""
    x, y, _ = data()
    for scope in (tf.distribute.get_strategy(), mirrored):
        keras.utils.set_random_seed(0)
        with scope.scope():
            model = build()
            model.compile("sgd", cross_entropy(), steps_per_execution=8, jit_compile=False)
        model.fit(x, y, batch_size=2, verbose=0)
        assert int(model.optimizer.iterations.numpy()) == 21
        assert model.report.steps == 5


def test_predict_on_batch_shares_the_rows_among_replicas(mirrored):
    x, _, _ = data()
    keras.utils.set_random_seed(0)
    expected = build().predict_on_batch(x)
    keras.utils.set_random_seed(0)
    with mirrored.scope():
        model = build()
    np.testing.assert_allclose(model.predict_on_batch(x), expected, atol=1e-6)
    np.testing.assert_allclose(model.predict(x, batch_size=16, verbose=0), expected, atol=1e-6)
    one = {name: value[:1] for name, value in x.items()}  # one replica gets no row
    np.testing.assert_allclose(model.predict_on_batch(one), expected[:1], atol=1e-6)


def test_keras_tuner_searches_over_it(tmp_path):
    import keras_tuner

    def make(hp):
        model = build()
        optimizer = keras.optimizers.SGD(hp.Float("rate", 1e-3, 1e-1))
        model.compile(optimizer, cross_entropy(), metrics=["accuracy"], jit_compile=False)
        return model

    pytest.importorskip("tensorboard")  # KerasTuner's loop imports it
    tuner = keras_tuner.RandomSearch(make, "accuracy", max_trials=2, directory=str(tmp_path))
    x, y, _ = data()
    tuner.search(x, y, epochs=1, batch_size=16, verbose=0)
    assert len(tuner.oracle.get_best_trials(2)) == 2
