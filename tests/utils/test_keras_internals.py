"""Every private name of Keras and TensorFlow that tfft uses is where tfft expects it."""

import importlib
import inspect
import pkgutil
from functools import reduce

import keras
import keras_tuner
import numpy as np
import pytest
import tensorflow as tf
from keras.src.backend.tensorflow.trainer import TFEpochIterator

import tfft
from tfft.utils import keras_internals


def instance(name: str):
    """Return an instance of a class of `INHERITED`; some names are attributes of instances."""
    if name.startswith("keras_tuner."):
        cls = keras_tuner.oracles.RandomSearchOracle if name.endswith(".Oracle") else resolve(name)
        return cls(keras_tuner.Objective("loss", "min"))
    if name == "keras.Model":
        model = small_model()
        model.compile("sgd", "mse")
        return model
    if name.startswith("keras.optimizers."):
        optimizer = keras.optimizers.Adam(use_ema=True)
        optimizer.build([keras.Variable([1.0])])
        return optimizer
    return keras.layers.Dense(1)


def small_model() -> keras.Model:
    x = keras.Input([4], name="x")
    y = keras.layers.Dropout(0.5, name="dropout")(keras.layers.Dense(3, name="dense")(x))
    return keras.Model(x, y)


def resolve(name: str) -> type:
    module, *names = name.split(".")
    return reduce(getattr, names, importlib.import_module(module))


@pytest.mark.parametrize("name", keras_internals.INHERITED)
def test_the_inherited_names_exist(name):
    present = instance(name)
    assert isinstance(present, resolve(name))
    missing = [n for n in keras_internals.INHERITED[name] if not hasattr(present, n)]
    assert not missing


def test_no_class_overrides_a_private_name_that_is_not_listed():
    listed = {resolve(name): names for name, names in keras_internals.INHERITED.items()}
    unlisted = set()
    for module in pkgutil.walk_packages(tfft.__path__, "tfft."):
        if module.name.startswith("tfft.cli"):
            continue
        for _, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if not cls.__module__.startswith("tfft."):
                continue
            foreign = [b for b in cls.__mro__ if b.__module__.partition(".")[0] not in _OWN]
            for name in vars(cls):
                if not name.startswith("_") or name.startswith("__") or "_abc_" in name:
                    continue
                overridden = any(name in vars(base) for base in foreign)
                if overridden and not any(
                    issubclass(cls, base) and name in names for base, names in listed.items()
                ):
                    unlisted.add(f"{cls.__qualname__}.{name}")
    assert not unlisted


_OWN = {"tfft", "builtins", "typing", "enum", "pydantic", "abc"}


def test_layers():
    model = small_model()
    dense, dropout = model.get_layer("dense"), model.get_layer("dropout")
    flat = keras_internals.flat_layers(model)
    assert flat[0] is model and {dense, dropout} <= set(flat)
    assert model not in keras_internals.flat_layers(model, include_self=False)
    assert {dense, dropout} <= set(keras_internals.sublayers(model))
    assert len(keras_internals.seed_generators(dropout)) == 1
    assert keras_internals.seed_generators(dense) == []
    assert keras_internals.calls_with_training(dropout)
    assert not keras_internals.calls_with_training(keras.layers.Flatten())
    adapter = keras.layers.Dense(2)
    adapter.build([None, 3])
    keras_internals.track_layer(dense, adapter)
    assert len(dense.weights) == 4
    keras_internals.untrack_layer(dense, adapter)
    assert [v.path for v in dense.weights] == ["dense/kernel", "dense/bias"]


def test_fixed_variables_do_not_depend_on_trainable():
    norm = keras.layers.BatchNormalization()
    norm.build([None, 2])
    norm.trainable = False
    names = {v.name for v in keras_internals.fixed_variables(norm)}
    assert names == {"moving_mean", "moving_variance"}


def test_a_deleted_kernel_is_no_variable():
    layer = keras.layers.Dense(3)
    layer.build([None, 4])
    assert keras_internals.has_kernel(layer)
    keras_internals.delete_kernel(layer)
    assert not keras_internals.has_kernel(layer)
    assert [v.name for v in layer.weights] == ["bias"]


def test_functional_models():
    model = small_model()
    operations = [node.operation.name for node in keras_internals.nodes_bottom_up(model)]
    assert operations == ["x", "dense", "dropout"]
    (node,) = keras_internals.inbound_nodes(model.get_layer("dropout"))
    assert keras_internals.producer(node.input_tensors[0]) is model.get_layer("dense")


def test_a_path_is_set():
    variable = keras.Variable([1.0], name="v")
    keras_internals.set_path(variable, "a/b")
    assert variable.path == "a/b"


def test_optimizers():
    variables = [keras.Variable([1.0, 2.0]), keras.Variable([3.0])]
    optimizer = keras.optimizers.ScheduleFreeAdamW(use_ema=True)
    optimizer.build(variables)
    assert keras_internals.trained_by(optimizer) == variables
    assert [m.shape for m in keras_internals.momentums(optimizer)] == [(2,), (1,)]
    assert [a.shape for a in keras_internals.weight_averages(optimizer)] == [(2,), (1,)]


def test_updates_need_no_merge_call_and_clip_as_requested():
    variable = keras.Variable([1.0, 2.0])
    optimizer = keras.optimizers.SGD(1.0, clipnorm=1.0)
    optimizer.build([variable])
    gradients = [tf.constant([3.0, 4.0])]
    clipped = keras_internals.clip_like_keras(optimizer, gradients)
    np.testing.assert_allclose(clipped[0], [0.6, 0.8], rtol=1e-6)
    keras_internals.update_without_merging(optimizer, lambda _, g: [2 * x for x in g])
    # A merge call fails within a `cond` in a replica.
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])

    @tf.function
    def step():
        def apply():
            optimizer.apply(gradients)
            return tf.constant(True)

        return strategy.run(lambda: tf.cond(tf.constant(True), apply, apply))

    step()
    np.testing.assert_allclose(variable, [1 - 6.0, 2 - 8.0])


def test_replica_specs_are_those_of_one_replica():
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    rows = {"x": np.zeros([8, 3], np.float32)}
    dataset = tf.data.Dataset.from_tensor_slices(rows).batch(4, drop_remainder=True)
    iterator = TFEpochIterator(x=dataset, distribute_strategy=strategy)
    assert keras_internals.replica_specs(iterator)["x"].shape == [4, 3]


def test_operations_of_the_process():
    assert keras_internals.op_definition("Assert").is_stateful
    assert not keras_internals.op_definition("MatMul").is_stateful
    assert keras_internals.op_definition("NoSuchOp") is None
