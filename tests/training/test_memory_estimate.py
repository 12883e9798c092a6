"""The memory estimate: exact for weights, gradients and slots; less for fewer trainable layers."""

import pytest
import tensorflow as tf

from tfft.config import parse
from tfft.training import memory_estimate, setup

MIB = 2**20


def estimate_of(config, tmp_path, rows=16, width=16, **method):
    result, *_ = setup.prepare(parse({**config, "method": method}), tmp_path)
    return memory_estimate.step(result.model, rows, width), result.model


def test_weights_gradients_and_slots_are_exact(config, tmp_path):
    estimate, model = estimate_of(config, tmp_path, name="full")
    parameters = model.count_params()
    assert estimate["weights"] == estimate["gradients"] == 4 * parameters
    # Two moments, and the count of steps.
    assert 0 < estimate["optimizer"] - 8 * parameters < 64


def test_distillation_needs_no_more_activations_and_r_drop_does(config, tmp_path):
    plain, _ = estimate_of(config, tmp_path, name="full")
    config["regularization"] = {"distillation": {"teacher": "runs/none"}}
    student, _ = estimate_of(config, tmp_path, name="full")
    assert student["activations"] == pytest.approx(plain["activations"], rel=0.05)
    config["regularization"] = {"r_drop": {}}
    doubled, _ = estimate_of(config, tmp_path, name="full")
    assert doubled["activations"] > 1.5 * plain["activations"]


def test_fewer_trainable_stages_need_less_memory(config, tmp_path):
    full, _ = estimate_of(config, tmp_path, name="full")
    top, _ = estimate_of(config, tmp_path, name="top", stages=1)
    head, _ = estimate_of(config, tmp_path, name="head")
    for key in ("gradients", "optimizer", "activations"):
        assert full[key] > top[key] > head[key], key


def test_activations_grow_with_the_batch(config, tmp_path):
    small, _ = estimate_of(config, tmp_path, rows=32, name="lora")
    large, _ = estimate_of(config, tmp_path, rows=128, name="lora")
    assert large["activations"] == pytest.approx(4 * small["activations"], rel=0.1)


def test_peak_of_a_graph_with_a_known_peak():
    """Three matrices are alive at once: a, b and their product."""

    @tf.function(autograph=False)
    def function(x):
        a = tf.matmul(x, x)  # 4 MiB each
        b = tf.matmul(a, a)
        c = tf.matmul(a, b)
        return tf.reduce_sum(c)

    graph = function.get_concrete_function(tf.TensorSpec([1024, 1024], tf.float32)).graph
    # The input, which belongs to the caller, counts until its last reader.
    assert memory_estimate.peak(graph) == pytest.approx(12 * MIB, rel=0.01)


def test_pruned_operations_are_not_counted():
    @tf.function(autograph=False)
    def function(x):
        tf.matmul(x, x, name="unused")
        return tf.reduce_sum(x)

    graph = function.get_concrete_function(tf.TensorSpec([256, 256], tf.float32)).graph
    assert not [o for o in memory_estimate._executed(graph) if o.type == "MatMul"]
