"""Tests of TF_CONFIG, the choice of a strategy, and unsupported devices."""

import json

import pytest
import tensorflow as tf

from tfft.config import DistributeConfig
from tfft.distribute import strategies
from tfft.distribute.strategies import Workers
from tfft.utils.errors import UserError


def set_tf_config(monkeypatch, value):
    monkeypatch.setenv("TF_CONFIG", value if isinstance(value, str) else json.dumps(value))


@pytest.mark.parametrize(
    ("tf_config", "expected"),
    [
        ("", Workers(1, 0)),
        ({}, Workers(1, 0)),
        ({"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}, Workers(1, 0)),
        (
            {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}},
            Workers(2, 1),
        ),
        (
            {
                "cluster": {"chief": ["a:1"], "worker": ["b:1", "c:1"]},
                "task": {"type": "worker", "index": 1},
            },
            Workers(3, 2),
        ),
        (
            {
                "cluster": {"chief": ["a:1"], "worker": ["b:1"]},
                "task": {"type": "chief", "index": 0},
            },
            Workers(2, 0),
        ),
    ],
)
def test_workers_are_parsed_from_tf_config(monkeypatch, tf_config, expected):
    set_tf_config(monkeypatch, tf_config)
    assert strategies.workers() == expected
    assert strategies.workers().is_chief == (expected.index == 0)


@pytest.mark.parametrize(
    ("tf_config", "message"),
    [
        ("{", "TF_CONFIG: must be JSON with cluster and task"),
        ("[1]", "TF_CONFIG: must be JSON with cluster and task"),
        (
            {"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "worker", "index": 0}},
            "chief and worker tasks only. Received: ps",
        ),
        (
            {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}},
            "the task must be in the cluster .*. Received: worker 2",
        ),
    ],
)
def test_invalid_tf_config_is_refused(monkeypatch, tf_config, message):
    set_tf_config(monkeypatch, tf_config)
    with pytest.raises(UserError, match=message):
        strategies.workers()


def setup(**config):
    return strategies.setup(DistributeConfig(**config), 0, False)


def test_missing_workers_and_devices_are_refused(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(UserError, match=r"multi_worker needs TF_CONFIG.*tfft launch --workers=2"):
        setup(strategy="multi_worker")
    with pytest.raises(
        UserError, match=r"tpu needs a TPU, and TensorFlow sees none; .* tensorflow-tpu==2\.20\.0"
    ):
        setup(strategy="tpu")
    with pytest.raises(UserError, match=r"no such device; available: CPU:0.*\. Received: GPU:0$"):
        setup(strategy="mirrored", devices=["GPU:0", "CPU:0"])
    with pytest.raises(UserError, match="mixed_float16 needs a GPU"):
        setup(precision="mixed_float16")


def test_gpu_without_bfloat16_is_refused(monkeypatch):
    gpu = tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")
    monkeypatch.setattr(
        tf.config, "list_physical_devices", lambda kind=None: [gpu] if kind == "GPU" else []
    )
    details = {"device_name": "Tesla T4", "compute_capability": (7, 5)}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda _: details)
    with pytest.raises(UserError, match=r"Tesla T4 \(compute capability 7.5\).*use mixed_float16"):
        setup(precision="mixed_bfloat16")


def test_sum_over_one_worker_is_its_value():
    assert strategies.sum_over_workers(tf.distribute.get_strategy(), [1, 2]).tolist() == [1, 2]


def test_lost_worker_error_says_how_to_resume(monkeypatch, tmp_path):
    error = tf.errors.UnavailableError(None, None, "Socket closed")
    with pytest.raises(tf.errors.UnavailableError), strategies.lost_worker_errors(tmp_path):
        raise error
    tf_config = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
    set_tf_config(monkeypatch, tf_config)
    with (
        pytest.raises(strategies.Interrupted, match="another worker was lost; the last checkpoint"),
        strategies.lost_worker_errors(tmp_path),
    ):
        raise error
