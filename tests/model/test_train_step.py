"""Tests of the train step: equal to Keras' step, and features that Keras' step lacks."""

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
    """An embedding with a dense gradient, which Keras' optimizers clip correctly."""

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


def get_weights(model):
    return {v.path: np.array(v.numpy()) for v in model.weights}


def train(model, optimizer, weighted=False, loss=None, evaluate=False, **options):
    """Return weights and history after three epochs, and the metrics of `evaluate` or None."""
    options = {"jit_compile": False, **options}
    model.compile(optimizer, loss or cross_entropy(), metrics=["accuracy"], **options)
    with model.distribute_strategy.scope():
        # Keras builds it while tracing, where ScheduleFreeAdamW would be reset in every step.
        model.optimizer.build(model.trainable_variables)
    x, y, weight = data()
    weight = weight if weighted else None
    fit = model.fit(x, y, sample_weight=weight, batch_size=16, epochs=3, shuffle=False, verbose=0)
    metrics = model.evaluate(x, y, batch_size=16, verbose=0) if evaluate else None
    return get_weights(model), fit.history, metrics


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


# These vary the clipping or the optimizer; the quick cases test the same equality.
SLOW = ("clipvalue", "muon", "schedule-free")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in OPTIMIZERS]
)
def test_equals_keras_on_one_device_and_on_two(name, mirrored):
    """The reference is Keras' step on one device, with a dense gradient of the embedding."""
    results = []
    for cls in (keras.Model, Model):
        keras.utils.set_random_seed(0)
        results.append(train(build(cls), OPTIMIZERS[name](), evaluate=True))
    keras.utils.set_random_seed(0)
    with mirrored.scope():
        model, optimizer = build(), OPTIMIZERS[name]()
    results.append(train(model, optimizer, evaluate=True))
    (expected, expected_history, expected_metrics), *others = results
    for weights, history, metrics in others:
        for path, value in expected.items():
            np.testing.assert_allclose(weights[path], value, atol=3e-6, err_msg=path)
        np.testing.assert_allclose(history["loss"], expected_history["loss"], rtol=1e-5)
        np.testing.assert_allclose(history["accuracy"], expected_history["accuracy"], rtol=1e-6)
        np.testing.assert_allclose(metrics, expected_metrics, rtol=1e-5)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight"])
def test_micro_batches_and_replicas_give_the_same_mean_loss(reduction, mirrored):
    """Sample weights, unequal micro-batches and two replicas train like one batch in Keras."""
    results = []
    for scope, micro_batch in ((None, None), (None, 5), (mirrored, 3)):
        keras.utils.set_random_seed(0)
        with (scope or tf.distribute.get_strategy()).scope():
            model, optimizer = build(), keras.optimizers.SGD(0.01)
        options = {"loss": cross_entropy(reduction=reduction), "micro_batch": micro_batch}
        results.append(train(model, optimizer, weighted=True, **options))
    keras.utils.set_random_seed(0)
    keras_model = build(keras.Model)
    loss = cross_entropy(reduction=reduction)
    expected = train(keras_model, keras.optimizers.SGD(0.01), weighted=True, loss=loss)[0]
    for weights, *_ in results:
        for path, value in expected.items():
            np.testing.assert_allclose(weights[path], value, atol=1e-6, err_msg=path)


def test_token_loss_is_weighted_by_tokens(mirrored):
    """The replicas have unequal numbers of tokens that are not padding."""
    x, _, _ = data()
    y = np.random.default_rng(1).integers(0, CLASSES, (ROWS, TOKENS))
    token_weights = x["mask"].astype(np.float32) * (np.arange(ROWS)[:, None] % 16 < 9)
    results = []
    for scope in (tf.distribute.get_strategy(), mirrored):
        keras.utils.set_random_seed(0)
        with scope.scope():
            model, optimizer = build(by_token=True), keras.optimizers.SGD(0.1)
        model.compile(optimizer, cross_entropy(reduction="mean_with_sample_weight"))
        model.fit(x, y, sample_weight=token_weights, batch_size=16, shuffle=False, verbose=0)
        results.append(get_weights(model))
    for path, value in results[0].items():
        np.testing.assert_allclose(results[1][path], value, atol=1e-6, err_msg=path)


class RecordsNoise(keras.layers.Layer):
    """Returns its input, and stores the noise of its generator in each replica."""

    def __init__(self):
        super().__init__(name="draws")
        self.seed_generator = keras.random.SeedGenerator(1)
        self.noise = self.add_weight(shape=(4,), trainable=False, name="noise")

    def call(self, x, training=False):
        if training:
            self.noise.assign(keras.random.uniform((4,), seed=self.seed_generator))
        return x


def test_replicas_draw_different_dropout(mirrored):
    with mirrored.scope():
        x = keras.Input([4])
        model = Model(x, keras.layers.Dense(1)(RecordsNoise()(x)))
        model.compile("sgd", "mse", jit_compile=False)
    model.fit(np.ones((8, 4)), np.ones((8, 1)), batch_size=8, verbose=0)
    noise = [v.numpy() for v in model.get_layer("draws").noise.value.values]
    assert (noise[0] != noise[1]).all()
    layer = RecordsNoise()
    layer(np.ones((8, 4), np.float32), training=True)
    # The first replica draws the same as without a strategy.
    np.testing.assert_array_equal(noise[0], layer.noise.numpy())
    states = [v.numpy() for v in generators(model)[0].state.value.values]
    np.testing.assert_array_equal(*states)


@pytest.mark.parametrize("xla", [False, True])
def test_rematerialised_model_learns_the_same(xla):
    results = []
    for remat in (False, True):
        keras.utils.set_random_seed(0)
        model = build(dropout=0.5)
        if remat:
            assert rematerialise(model, [Stage("dense", "dense/")]) == ["dense"]
        optimizer = keras.optimizers.SGD(0.1)
        results.append(train(model, optimizer, jit_compile=xla)[0])
    for path, value in results[0].items():
        np.testing.assert_allclose(results[1][path], value, atol=1e-6, err_msg=path)


def test_norm_without_a_training_mode_is_not_rematerialised():
    x = keras.Input([4])
    hidden = keras.layers.LayerNormalization(name="norm")(keras.layers.Dense(4, name="dense")(x))
    model = Model(x, keras.layers.Dense(1, name="out")(hidden))
    assert rematerialise(model, [Stage("block", "(?:dense|norm)/")]) == ["dense"]
    assert model(np.ones((2, 4), np.float32), training=True).shape == (2, 1)


class DenseDropout(keras.layers.Layer):
    """A dense layer and dropout as one layer, so that both are recomputed."""

    def __init__(self):
        super().__init__(name="noisy")
        self.dense = keras.layers.Dense(16, activation="tanh", name="dense")
        self.drop = keras.layers.Dropout(0.5, name="drop")
        self.num_calls = 0

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x, training=False):
        self.num_calls += 1
        return self.drop(self.dense(x), training=training)


def test_recomputed_dropout_has_the_same_mask():
    results, calls = [], []
    for remat in (False, True):
        keras.utils.set_random_seed(0)
        x = keras.Input([8])
        layer = DenseDropout()
        model = Model(x, keras.layers.Dense(1, name="out")(layer(x)))
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
        if remat:
            assert rematerialise(model, [Stage("all", "noisy/")]) == ["noisy"]
        generator = np.random.default_rng(0)
        x, y = generator.normal(size=(64, 8)), generator.normal(size=(64, 1))
        layer.num_calls = 0
        model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
        results.append(get_weights(model))
        calls.append(layer.num_calls)
    assert calls[1] > calls[0]  # recomputed
    for path, value in results[0].items():  # another mask would give other gradients
        np.testing.assert_allclose(results[1][path], value, atol=1e-6, err_msg=path)


def test_step_with_nan_loss_changes_nothing():
    x, y, _ = data()
    model = build()
    model.compile(keras.optimizers.AdamW(1e-2), cross_entropy(), jit_compile=False)
    model.train_on_batch(x, y)
    assert (model.report.steps, model.report.skipped) == (1, 0)
    initial = get_weights(model)
    slots = [np.array(v.numpy()) for v in model.optimizer.variables]
    model.train_on_batch(x, y, sample_weight=np.full(ROWS, np.nan))
    assert model.report.skipped == 1
    for path, value in get_weights(model).items():
        np.testing.assert_array_equal(value, initial[path])
    for old, new in zip(slots, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


def test_steps_per_execution_stop_at_the_end_of_the_data(mirrored):
    """21 batches with 8 per call are calls of 8, 8 and 5 steps."""
    x, y, _ = data()
    for scope in (tf.distribute.get_strategy(), mirrored):
        keras.utils.set_random_seed(0)
        with scope.scope():
            model = build()
            model.compile("sgd", cross_entropy(), steps_per_execution=8, jit_compile=False)
        model.fit(x, y, batch_size=2, verbose=0)
        assert int(model.optimizer.iterations.numpy()) == 21
        assert model.report.steps == 5


def test_predict_on_batch_splits_the_rows_over_replicas(mirrored):
    x, _, _ = data()
    keras.utils.set_random_seed(0)
    expected = build().predict_on_batch(x)
    keras.utils.set_random_seed(0)
    with mirrored.scope():
        model = build()
    np.testing.assert_allclose(model.predict_on_batch(x), expected, atol=1e-6)
    np.testing.assert_allclose(model.predict(x, batch_size=16, verbose=0), expected, atol=1e-6)
    single_row = {name: value[:1] for name, value in x.items()}  # one replica gets no row
    np.testing.assert_allclose(model.predict_on_batch(single_row), expected[:1], atol=1e-6)


def test_keras_tuner_can_search_over_the_model(tmp_path):
    import keras_tuner

    def build_compiled(hp):
        model = build()
        optimizer = keras.optimizers.SGD(hp.Float("rate", 1e-3, 1e-1))
        model.compile(optimizer, cross_entropy(), metrics=["accuracy"], jit_compile=False)
        return model

    pytest.importorskip("tensorboard")  # KerasTuner's loop imports it
    tuner = keras_tuner.RandomSearch(
        build_compiled, "accuracy", max_trials=2, directory=str(tmp_path)
    )
    x, y, _ = data()
    tuner.search(x, y, epochs=1, batch_size=16, verbose=0)
    assert len(tuner.oracle.get_best_trials(2)) == 2


def test_options_discard_only_what_was_traced_with_others():
    x = keras.Input([2], name="x")
    model = Model({"x": x}, keras.layers.Dense(1)(x))
    model.compile("sgd", "mse", micro_batch=4, jit_compile=False)
    first = model.make_train_function()
    model.configure(micro_batch=2)  # a tensor of the function
    assert model.make_train_function() is first
    model.configure(micro_batch=None)  # no loop over micro-batches
    second = model.make_train_function()
    assert second is not first
    model.configure(jit_compile=False)  # as it was
    assert model.make_train_function() is second
    model.predict_on_batch({"x": np.zeros([2, 2], np.float32)})
    predictions = dict(model._forward)
    model.configure(penalties=(lambda path, value: None,))
    assert model.make_train_function() is not second
    assert predictions and model._forward == predictions  # predictions do not read it
    model.configure(upper_part=model)
    assert not model._forward
    with pytest.raises(TypeError, match="xla"):
        model.configure(xla=True)
