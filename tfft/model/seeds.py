"""Random seeds within a traced step: another for each replica, the same one when recomputing.

Keras keeps the state of each random layer in a `SeedGenerator`, whose variable is mirrored: left
alone, every replica of a strategy would draw the same dropout mask.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf


def generators(layer: keras.layers.Layer) -> list[keras.random.SeedGenerator]:
    """The seed generators of a layer and of all layers below it, each once, in a fixed order."""
    found: dict[int, keras.random.SeedGenerator] = {}
    for inner in layer._flatten_layers():
        for generator in getattr(inner, "_seed_generators", ()):
            found.setdefault(id(generator), generator)
    return list(found.values())


@contextmanager
def of_replica(model: keras.Model) -> Iterator[None]:
    """While tracing in a replica: fold the replica's number into what the generators give.

    The first replica's seeds stay as they are, so that one replica equals no strategy. Nothing
    within may be a collective: at one, the trace of another replica goes on.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        yield
        return

    def folded(seed: Any) -> tf.Tensor:
        here = tf.distribute.get_replica_context()
        replica = tf.cast(here.replica_id_in_sync_group, tf.int32)
        other = tf.random.experimental.stateless_fold_in(tf.cast(seed, tf.int32), replica)
        return tf.where(replica == 0, seed, tf.cast(other, seed.dtype))

    every = generators(model)
    with _replaced(every, [_then(generator.next, folded) for generator in every]):
        yield


def draw(layer: keras.layers.Layer) -> list[tf.Tensor]:
    """One seed from each generator of a layer, for `given`."""
    return [generator.next() for generator in generators(layer)]


@contextmanager
def given(layer: keras.layers.Layer, seeds: Sequence[tf.Tensor]) -> Iterator[None]:
    """While tracing: the layer's generators give these seeds instead of new ones."""
    with _replaced(generators(layer), [_constantly(seed) for seed in seeds]):
        yield


def _then(first: Any, second: Any) -> Any:
    return lambda ordered=True: second(first(ordered))


def _constantly(seed: tf.Tensor) -> Any:
    # A layer may draw more than once in a call: the draws must differ.
    count = iter(range(1 << 30))

    def next_(ordered: bool = True) -> tf.Tensor:
        at = next(count)
        return seed if at == 0 else seed + tf.constant([at << 16, 0], seed.dtype)

    return next_


@contextmanager
def _replaced(every: Sequence[keras.random.SeedGenerator], nexts: Sequence[Any]) -> Iterator[None]:
    before = [generator.__dict__.get("next") for generator in every]
    for generator, next_ in zip(every, nexts, strict=True):
        generator.next = next_
    try:
        yield
    finally:
        for generator, old in zip(every, before, strict=True):
            if old is None:
                del generator.next
            else:
                generator.next = old
