"""What a strategy is chosen by, and what is refused."""

import json

import pytest
import tensorflow as tf

from tfft.config import DistributeConfig
from tfft.distribute import strategies
from tfft.distribute.strategies import Workers
from tfft.utils.errors import UserError


def cluster(monkeypatch, value):
    monkeypatch.setenv("TF_CONFIG", value if isinstance(value, str) else json.dumps(value))


@pytest.mark.parametrize(
    ("given", "expected"),
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
def test_workers_of_tf_config(monkeypatch, given, expected):
    cluster(monkeypatch, given)
    assert strategies.workers() == expected
    assert strategies.workers().first == (expected.index == 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{", "TF_CONFIG: cannot be read"),
        ("[1]", "TF_CONFIG: cannot be read"),
        (
            {"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "worker", "index": 0}},
            "chief and worker tasks only; received ps",
        ),
        (
            {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}},
            "has no task worker 2",
        ),
    ],
)
def test_tf_config_with_a_mistake(monkeypatch, given, message):
    cluster(monkeypatch, given)
    with pytest.raises(UserError, match=message):
        strategies.workers()


def setup(**config):
    return strategies.setup(DistributeConfig(**config), 0, False)


def test_what_is_not_there_is_refused(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(UserError, match=r"multi_worker needs TF_CONFIG.*tfft launch --workers=2"):
        setup(strategy="multi_worker")
    with pytest.raises(UserError, match=r"no TPU is seen; .* tensorflow-tpu==2\.20\.0"):
        setup(strategy="tpu")
    with pytest.raises(UserError, match="no GPU:0; there are: CPU:0"):
        setup(strategy="mirrored", devices=["GPU:0", "CPU:0"])
    with pytest.raises(UserError, match="mixed_float16 needs a GPU"):
        setup(precision="mixed_float16")


def test_a_gpu_too_old_for_bfloat16_is_refused(monkeypatch):
    gpu = tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")
    monkeypatch.setattr(
        tf.config, "list_physical_devices", lambda kind=None: [gpu] if kind == "GPU" else []
    )
    details = {"device_name": "Tesla T4", "compute_capability": (7, 5)}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda _: details)
    with pytest.raises(UserError, match=r"Tesla T4 \(compute capability 7.5\).*use mixed_float16"):
        setup(precision="mixed_bfloat16")


def test_one_worker_sums_alone():
    assert strategies.sum_over_workers(tf.distribute.get_strategy(), [1, 2]).tolist() == [1, 2]


def test_a_lost_worker_is_told(monkeypatch, tmp_path):
    error = tf.errors.UnavailableError(None, None, "Socket closed")
    with pytest.raises(tf.errors.UnavailableError), strategies.lost_worker_errors(tmp_path):
        raise error
    given = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
    cluster(monkeypatch, given)
    with (
        pytest.raises(strategies.Interrupted, match="another worker was lost; the last checkpoint"),
        strategies.lost_worker_errors(tmp_path),
    ):
        raise error
