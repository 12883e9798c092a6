"""Wrappers around the `call` of built layers, in a defined order.

This is the one way in which tfft changes what a layer computes. Keras' `__call__` looks `call` up
each time, so a wrapper takes effect in the next trace.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import keras

Call = Callable[..., Any]


class Order(IntEnum):
    """Order of the wrappers of a layer, from the inside out."""

    LINEAR = 0  # kernel replacement and adapters, before the activation
    FROZEN = 1  # inference mode of frozen dropout and BatchNorm
    OFFSET = 2  # offsets on embeddings, of adversarial training
    RECORD = 3  # records what the layer reads
    REMAT = 4  # last, since it recomputes all of the others


def wrap_call(
    layer: keras.layers.Layer, wrapper: Callable[[Call], Call], order: Order
) -> Callable[[], None]:
    """Wrap the `call` of a layer. Functions traced before keep what they compute.

    Args:
        layer: changed in place.
        wrapper: inner `call` -> new `call`. Called again when another wrapper is added or removed.
        order: its place among the wrappers; later ones of one order are further outside.

    Returns:
        A function that removes the wrapper.
    """
    # In the dictionary: Keras would track the object, and refuses new attributes of built layers.
    calls = layer.__dict__.get("_tfft_calls") or _WrappedCall(layer)
    layer.__dict__["_tfft_calls"] = calls
    return calls.add(wrapper, order)


class _WrappedCall:
    """The `call` of a layer with its wrappers."""

    def __init__(self, layer: keras.layers.Layer):
        self._layer, self._original = layer, layer.call
        self._entries: list[tuple[Order, Callable[[Call], Call]]] = []

    def add(self, wrapper: Callable[[Call], Call], order: Order) -> Callable[[], None]:
        entry = (order, wrapper)
        self._entries.append(entry)
        self._build()

        def remove() -> None:
            self._entries = [other for other in self._entries if other is not entry]
            self._build()

        return remove

    def _build(self) -> None:
        call = self._original
        for _, wrapper in sorted(self._entries, key=lambda entry: entry[0]):  # a stable sort
            call = wrapper(call)
        self._layer.call = call
