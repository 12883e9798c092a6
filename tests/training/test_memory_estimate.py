"""The memory estimate: exact where it can be, and less where less moves."""

import pytest
import tensorflow as tf

from tfft.config import parse
from tfft.training import memory_estimate, setup

MIB = 2**20


def of(config, tmp_path, rows=16, width=16, **method):
    result, *_ = setup.prepare(parse({**config, "method": method}), tmp_path)
    return memory_estimate.step(result.model, rows, width), result.model


def test_weights_gradients_and_slots_are_exact(config, tmp_path):
    found, model = of(config, tmp_path, name="full")
    parameters = model.count_params()
    assert found["weights"] == found["gradients"] == 4 * parameters
    # Two moments, and the count of steps.
    assert 0 < found["optimizer"] - 8 * parameters < 64


def test_a_student_and_a_doubled_batch(config, tmp_path):
    plain, _ = of(config, tmp_path, name="full")
    config["regularization"] = {"distillation": {"teacher": "runs/none"}}
    student, _ = of(config, tmp_path, name="full")
    assert student["activations"] == pytest.approx(plain["activations"], rel=0.05)
    config["regularization"] = {"r_drop": {}}
    doubled, _ = of(config, tmp_path, name="full")
    assert doubled["activations"] > 1.5 * plain["activations"]


def test_less_where_less_moves(config, tmp_path):
    full, _ = of(config, tmp_path, name="full")
    top, _ = of(config, tmp_path, name="top", stages=1)
    head, _ = of(config, tmp_path, name="head")
    for key in ("gradients", "optimizer", "activations"):
        assert full[key] > top[key] > head[key], key


def test_activations_grow_with_the_batch(config, tmp_path):
    small, _ = of(config, tmp_path, rows=32, name="lora")
    large, _ = of(config, tmp_path, rows=128, name="lora")
    assert large["activations"] == pytest.approx(4 * small["activations"], rel=0.1)


def test_the_walk_on_a_graph_of_which_the_peak_is_known():
    """a, b and their product are alive at once; then the sum alone."""

    @tf.function(autograph=False)
    def function(x):
        a = tf.matmul(x, x)  # 4 MiB each
        b = tf.matmul(a, a)
        c = tf.matmul(a, b)
        return tf.reduce_sum(c)

    graph = function.get_concrete_function(tf.TensorSpec([1024, 1024], tf.float32)).graph
    # The input, which belongs to the caller, counts until it was last read.
    assert memory_estimate.peak(graph) == pytest.approx(12 * MIB, rel=0.01)


def test_what_is_not_needed_is_not_counted():
    @tf.function(autograph=False)
    def function(x):
        tf.matmul(x, x, name="unused")
        return tf.reduce_sum(x)

    graph = function.get_concrete_function(tf.TensorSpec([256, 256], tf.float32)).graph
    assert not [o for o in memory_estimate._needed(graph) if o.type == "MatMul"]
