"""Random seeds within a traced step: different in each replica, equal when recomputed.

Keras keeps the state of each random layer in a `SeedGenerator`, whose variable is mirrored. By
default every replica of a strategy would draw the same dropout mask.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from tfft.utils import keras_internals


def generators(layer: keras.layers.Layer) -> list[keras.random.SeedGenerator]:
    """Return the seed generators of a layer and its sublayers, each once, in a fixed order."""
    unique: dict[int, keras.random.SeedGenerator] = {}
    for inner in keras_internals.flat_layers(layer):
        for generator in keras_internals.seed_generators(inner):
            # Sublayers that share a generator must get one replacement, not two.
            unique.setdefault(id(generator), generator)
    return list(unique.values())


@contextmanager
def fold_in_replica(model: keras.Model) -> Iterator[None]:
    """Fold the index of the replica into every seed, while tracing in a replica.

    The seeds of the first replica are unchanged, so one replica equals no strategy. The context
    must not contain a collective operation: there TensorFlow switches to the trace of another
    replica, which would find the generators of this one replaced.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        yield
        return

    def fold(seed: Any) -> tf.Tensor:
        replica_context = tf.distribute.get_replica_context()
        # The state itself advances equally in all replicas, so its copies stay equal.
        return fold_in(seed, tf.cast(replica_context.replica_id_in_sync_group, tf.int32))

    all_generators = generators(model)
    with _replace_next(all_generators, [_compose(g.next, fold) for g in all_generators]):
        yield


def draw(layer: keras.layers.Layer) -> list[tf.Tensor]:
    """Draw one seed from each generator of a layer, for `use`."""
    return [generator.next() for generator in generators(layer)]


def fold_in(seed: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Return a seed of a part of the work: that of the first part is `seed` itself."""
    folded = tf.random.experimental.stateless_fold_in(tf.cast(seed, tf.int32), index)
    return tf.where(index == 0, seed, tf.cast(folded, seed.dtype))


@contextmanager
def use(layer: keras.layers.Layer, seeds: Sequence[tf.Tensor]) -> Iterator[None]:
    """Make the layer's generators return the seeds of `draw`, while tracing within the context."""
    with _replace_next(generators(layer), [_seed_sequence(seed) for seed in seeds]):
        yield


def _compose(next_seed: Any, transform: Any) -> Any:
    return lambda ordered=True: transform(next_seed(ordered))


def _seed_sequence(seed: tf.Tensor) -> Any:
    """Return a `next` that begins at `seed` and changes it by a constant in each call."""
    # A layer may draw more than once in a call, and the draws must differ.
    count = iter(range(1 << 30))

    def next_(ordered: bool = True) -> tf.Tensor:
        index = next(count)
        # Keras advances the second element by 1 in each draw. Changing the first one cannot meet
        # the seed of a later step.
        return seed if index == 0 else seed + tf.constant([index << 16, 0], seed.dtype)

    return next_


@contextmanager
def _replace_next(
    seed_generators: Sequence[keras.random.SeedGenerator], nexts: Sequence[Any]
) -> Iterator[None]:
    """Replace `next` of each generator within the context; contexts may be nested."""
    previous = [generator.__dict__.get("next") for generator in seed_generators]
    for generator, next_ in zip(seed_generators, nexts, strict=True):
        generator.next = next_
    try:
        yield
    finally:
        for generator, previous_next in zip(seed_generators, previous, strict=True):
            if previous_next is None:
                del generator.next  # the method of the class is visible again
            else:
                generator.next = previous_next
