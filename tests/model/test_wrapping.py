"""Wrappers around `call` apply in their order, whatever the order of their addition."""

import gc
import itertools
import weakref

import keras
import numpy as np
import pytest

from tfft.model.wrapping import Order, wrap_call


def adds(value: float):
    """Return a wrapper: y -> 10 y + value, which shows the order."""

    def wrap(inner):
        return lambda x: 10 * inner(x) + value

    return wrap


def output(layer) -> float:
    return float(keras.ops.convert_to_numpy(layer(np.zeros([1, 2], np.float32)))[0, 0])


@pytest.fixture
def layer():
    layer = keras.layers.Dense(1)
    layer.build([None, 2])
    return layer


@pytest.mark.parametrize("added", itertools.permutations((Order.LINEAR, Order.OFFSET, Order.REMAT)))
def test_the_order_is_not_that_of_addition(layer, added):
    values = {Order.LINEAR: 1, Order.OFFSET: 2, Order.REMAT: 3}
    for order in added:
        wrap_call(layer, adds(values[order]), order)
    assert output(layer) == 123


def test_wrappers_of_one_order_are_in_the_order_of_addition(layer):
    wrap_call(layer, adds(1), Order.FROZEN)
    wrap_call(layer, adds(2), Order.FROZEN)
    assert output(layer) == 12


def test_each_wrapper_is_removed_alone_and_once(layer):
    removals = [wrap_call(layer, adds(v), Order.FROZEN) for v in (1, 2, 3)]
    removals[1]()
    removals[1]()
    assert output(layer) == 13
    wrap_call(layer, adds(4), Order.LINEAR)
    assert output(layer) == 413
    for remove in (removals[0], removals[2]):
        remove()
    assert output(layer) == 4


def test_a_wrapped_layer_is_released(layer):
    wrap_call(layer, adds(1), Order.LINEAR)
    other = keras.layers.Dense(1)
    wrap_call(other, adds(1), Order.LINEAR)
    reference = weakref.ref(other)
    del other
    gc.collect()
    assert reference() is None
