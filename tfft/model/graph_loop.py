"""A loop over the batches of an iterator in one graph call.

It stops at a limit that is a tensor, or where the data ends. It counts the steps that ran and those
that were skipped, and estimates the time spent waiting for input.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

TIMING_INTERVAL = 8  # steps between two whose wait for input is timed, at most


def with_metrics(
    run_batch: Callable[..., Any], metrics_result: Callable[[], Any]
) -> Callable[..., Any]:
    """Return `run_batch` with the metrics as a third result."""

    def run_one(data: Any, *flags: tf.Tensor) -> tuple[Any, ...]:
        loss, finite = run_batch(data, *flags)
        return loss, finite, metrics_result()

    return run_one


def loop_in_graph(
    run_batch: Callable[..., Any], metrics_result: Callable[[], Any], name: str | None
) -> Callable[..., Any]:
    """Build a function that runs at most `limit` batches of an iterator in one graph call.

    Args:
        run_batch: (batch, *flags) -> loss and whether it is finite.
        metrics_result: returns the metrics, once at the end.
        name: of the loop in the graph; None for TensorFlow's default.

    Returns:
        (iterator, limit, *flags) -> (steps, whether the iterator may have more, loss of the last
        step, skipped steps, seconds of waiting, metrics).
    """

    def run_batches(iterator: Any, limit: tf.Tensor, *flags: tf.Tensor) -> tuple[Any, ...]:
        # Reading the clock calls Python, which takes longer than a small step. So only the first
        # step of each interval is timed, and represents the whole interval.
        interval = tf.minimum(limit, TIMING_INTERVAL)

        def timed() -> tuple[Any, tf.Tensor]:
            start = _now()
            data = iterator.get_next_as_optional()
            # The second reading of the clock must run after the batch has arrived.
            with tf.control_dependencies([data.has_value()]):
                return data, (_now() - start) * tf.cast(interval, tf.float64)

        def untimed() -> tuple[Any, tf.Tensor]:
            return iterator.get_next_as_optional(), tf.constant(0.0, tf.float64)

        def body(count: tf.Tensor, _: tf.Tensor, loss: Any, skipped: Any, wait: Any) -> Any:
            # An optional in place of `get_next`: the end of the data is a value and not an error,
            # so the loop can stop inside of the graph after an incomplete number of steps.
            data, seconds = tf.cond(count % interval == 0, timed, untimed)
            has_data = data.has_value()
            wait += seconds

            def step() -> tuple[tf.Tensor, ...]:
                batch_loss, finite = run_batch(data.get_value(), *flags)
                return count + 1, batch_loss, skipped + tf.cast(~finite, tf.int32)

            new_count, loss, skipped = tf.cond(has_data, step, lambda: (count, loss, skipped))
            return new_count, has_data, loss, skipped, wait

        # The state: steps done, whether there may be more data, last loss, skipped steps, seconds.
        zero = tf.constant(0)
        state = (zero, tf.constant(True), tf.constant(0.0), zero, tf.constant(0.0, tf.float64))
        result = tf.while_loop(
            lambda count, has_data, *_: (count < limit) & has_data,
            body,
            state,
            parallel_iterations=1,
            name=name,
        )
        return *result, metrics_result()

    return run_batches


def _now() -> tf.Tensor:
    """Return the seconds of the clock when the graph runs this op, float64 []."""

    def clock() -> np.float64:
        # Eager TensorFlow would make a float32 of a Python float, exact to some milliseconds only.
        return np.float64(time.perf_counter())

    # `tf.timestamp` raises under op determinism.
    return tf.ensure_shape(tf.numpy_function(clock, [], tf.float64), [])
