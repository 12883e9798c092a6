"""Devices, workers, precision and seeds: the `tf.distribute` strategy of a run.

Workers are described by TF_CONFIG, which Kubernetes operators, Vertex AI and `tfft launch` set.
"""

import json
import os
import platform
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfft.config import DistributeConfig
from tfft.utils import console
from tfft.utils.errors import Interrupted, UserError

# Errors of a collective operation when another worker is gone.
_LOST_WORKER_ERRORS = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)
BFLOAT16_CAPABILITY = (8, 0)  # NVIDIA Ampere, the first generation that computes in bfloat16


@dataclass(frozen=True)
class Workers:
    """Number of worker processes, and the index of this one.

    Attributes:
        count: number of workers.
        index: index of this process, from 0.
    """

    count: int = 1
    index: int = 0

    @property
    def is_chief(self) -> bool:
        """Whether this is the chief, the first worker, which writes the run directory."""
        return self.index == 0


def workers() -> Workers:
    """Parse TF_CONFIG; without it, there is one worker.

    Raises:
        UserError: TF_CONFIG is not valid, or has tasks other than chief and worker.
    """
    text = os.environ.get("TF_CONFIG", "").strip()
    if not text:
        return Workers()
    try:
        tf_config = json.loads(text)
        cluster, task = tf_config.get("cluster", {}), tf_config.get("task", {})
        kind, index = task.get("type", "worker"), int(task.get("index", 0))
        sizes = {name: len(addresses) for name, addresses in cluster.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"TF_CONFIG: must be JSON with cluster and task: {error}. Received: {text[:200]!r}"
        ) from None
    # A TF_CONFIG without a cluster describes one worker.
    if not cluster:
        return Workers()
    # Among them "ps": Keras 3 does not support ParameterServerStrategy.
    unsupported = set(sizes) - {"chief", "worker"}
    if unsupported:
        names = ", ".join(sorted(unsupported))
        raise UserError(f"TF_CONFIG: tfft runs chief and worker tasks only. Received: {names}")
    if kind not in sizes or not 0 <= index < sizes[kind]:
        raise UserError(
            f"TF_CONFIG: the task must be in the cluster {sizes}. Received: {kind} {index}"
        )
    # The chief counts as the first worker.
    num_chiefs = sizes.get("chief", 0) if kind == "worker" else 0
    return Workers(sum(sizes.values()), num_chiefs + index)


def setup(config: DistributeConfig, seed: int, deterministic: bool) -> tf.distribute.Strategy:
    """Set the random seeds, choose the devices and create the strategy.

    Args:
        config: section `distribute`.
        seed: of Python, NumPy and TensorFlow.
        deterministic: whether TensorFlow's ops are deterministic; some are slower then.

    Raises:
        UserError: a device does not exist, or does not support the precision.
    """
    # 1. The seeds. Under op determinism TensorFlow's random ops raise without one.
    keras.utils.set_random_seed(seed)
    if deterministic:
        # By default the order of additions depends on the threads, and so does the rounding.
        tf.config.experimental.enable_op_determinism()
    # 2. The strategy. A CPU can be split only until TensorFlow has initialized its devices.
    kind = config.strategy if config.strategy != "auto" else _detect_strategy()
    strategy = _STRATEGIES[kind](config)
    _check_precision(config.precision, kind)
    if strategy.num_replicas_in_sync > 1:
        console.log(f"{kind}: {strategy.num_replicas_in_sync} replicas, {workers().count} workers")
    return strategy


def _detect_strategy() -> str:
    """Return the name of the strategy for the available workers and devices."""
    if workers().count > 1:
        return "multi_worker"
    if tf.config.list_physical_devices("TPU"):
        return "tpu"
    return "mirrored" if len(tf.config.list_physical_devices("GPU")) > 1 else "one_device"


def _one_device(config: DistributeConfig) -> tf.distribute.Strategy:
    if config.devices is None:
        return tf.distribute.get_strategy()  # the default strategy: TensorFlow uses the first GPU
    return tf.distribute.OneDeviceStrategy(f"/{_check_devices(config.devices)[0].lower()}")


def _mirrored(config: DistributeConfig) -> tf.distribute.Strategy:
    return _mirrored_on(None if config.devices is None else tuple(_check_devices(config.devices)))


@lru_cache
def _mirrored_on(devices: tuple[str, ...] | None) -> tf.distribute.Strategy:
    # One strategy for all runs of a process, since a second one would use the collective keys of
    # the first.
    return tf.distribute.MirroredStrategy(devices)


def _multi_worker(config: DistributeConfig) -> tf.distribute.Strategy:
    if workers().count < 2:
        raise UserError(
            "distribute.strategy: multi_worker needs TF_CONFIG with two workers or more; "
            "`tfft launch --workers=2 train ...` starts two on this machine. Received: "
            f"{workers().count} worker"
        )
    return tf.distribute.MultiWorkerMirroredStrategy()


def _tpu(config: DistributeConfig) -> tf.distribute.Strategy:
    tpus = tf.config.list_physical_devices("TPU")
    if config.tpu is None and not tpus and not os.environ.get("TPU_NAME"):
        raise UserError(
            "distribute.strategy: tpu needs a TPU, and TensorFlow sees none; on a TPU machine "
            "install tensorflow-tpu==2.20.0 in place of tensorflow (2.21 has none), or set "
            "distribute.tpu to the name of the TPU"
        )
    try:
        # "local": the TPU of this machine, a TPU VM.
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(config.tpu or "local")
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (ValueError, tf.errors.OpError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"distribute.tpu: the TPU cannot be initialized: {reason}. TPUs need the wheel "
            f"tensorflow-tpu==2.20.0 in place of tensorflow. Received: {config.tpu or 'local'}"
        ) from None


_STRATEGIES = {
    "one_device": _one_device,
    "mirrored": _mirrored,
    "multi_worker": _multi_worker,
    "tpu": _tpu,
}


def _check_devices(devices: Sequence[str]) -> list[str]:
    """Return TensorFlow's names of devices, such as `GPU:0`, and check that they exist.

    For tests of a strategy, `CPU:1` and above are logical devices of the physical CPU.

    Raises:
        UserError: a device does not exist.
    """
    names = [_full_name(device) for device in devices]
    # Split the CPU before `list_logical_devices` below initializes TensorFlow.
    cpus = [int(name.removeprefix("CPU:")) for name in names if name.startswith("CPU:")]
    if cpus and max(cpus) > 0:
        _split_cpu(max(cpus) + 1)
    available = [d.name.removeprefix("/device:") for d in tf.config.list_logical_devices()]
    for device, name in zip(devices, names, strict=True):
        if name not in available:
            raise UserError(
                f"distribute.devices: no such device; available: {', '.join(available)}. "
                f"Received: {device}"
            )
    return names


def _full_name(device: str) -> str:
    name = device.upper().lstrip("/").removeprefix("DEVICE:")
    return name if ":" in name else f"{name}:0"


def _split_cpu(count: int) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    if count > 64:
        raise UserError(
            f"distribute.devices: must be among CPU:0 to CPU:63. Received: CPU:{count - 1}"
        )
    try:
        logical_devices = [tf.config.LogicalDeviceConfiguration()] * count
        tf.config.set_logical_device_configuration(cpu, logical_devices)
    except RuntimeError:
        return  # TensorFlow is already initialized; the caller checks which devices exist


def _check_precision(precision: str, kind: str) -> None:
    if precision == "float32" or kind == "tpu":
        return
    gpus = tf.config.list_physical_devices("GPU")
    if precision == "mixed_float16" and not gpus:
        raise UserError(
            "distribute.precision: mixed_float16 needs a GPU; use float32 or mixed_bfloat16 on a "
            "CPU. Received: mixed_float16"
        )
    for gpu in gpus if precision == "mixed_bfloat16" else ():
        details = tf.config.experimental.get_device_details(gpu)
        # Devices that do not say what they can do are not refused.
        capability = details.get("compute_capability", BFLOAT16_CAPABILITY)
        if capability < BFLOAT16_CAPABILITY:
            raise UserError(
                f"distribute.precision: {details.get('device_name', gpu.name)} (compute capability "
                f"{capability[0]}.{capability[1]}) does not compute in bfloat16, which needs 8.0; "
                "use mixed_float16 or float32. Received: mixed_bfloat16"
            )


def accelerated() -> bool:
    """Return whether TensorFlow has a GPU or TPU, on which XLA is worth its compile time."""
    return any(tf.config.list_physical_devices(kind) for kind in ("GPU", "TPU"))


def sum_over_workers(strategy: tf.distribute.Strategy, value: Any) -> np.ndarray:
    """Return the sum of an array over the workers.

    Every worker must call it, with the same shape, in the same order of calls.

    Args:
        strategy: strategy of the run.
        value: number or array of this worker.
    """
    value = np.asarray(value)
    if workers().count == 1:
        return value
    num_local = len(strategy.extended.worker_devices)

    def replica_value(context: Any) -> np.ndarray:
        # The sum is over replicas: only the first replica of each worker contributes.
        return value * (context.replica_id_in_sync_group % num_local == 0)

    values = strategy.experimental_distribute_values_from_function(replica_value)
    return np.asarray(strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None))


@contextmanager
def lost_worker_errors(workdir: Path) -> Iterator[None]:
    """Turn the failure of a collective operation into an error that says how to resume.

    Args:
        workdir: run directory, for the message.

    Raises:
        Interrupted: another worker was lost.
    """
    try:
        yield
    except _LOST_WORKER_ERRORS as error:
        if workers().count == 1:
            raise
        # A frame of this traceback holds the thread pool of the failed collective, which still
        # runs. It must be freed now: at the exit of the interpreter it would write to a closed
        # file.
        traceback.clear_frames(error.__traceback__)
        raise Interrupted(
            "another worker was lost; the last checkpoint is kept, and the same command on all "
            f"workers with --workdir={workdir} resumes from it"
        ) from None


def describe_devices(strategy: tf.distribute.Strategy | None = None) -> dict[str, object]:
    """Return the devices of this process and the number of replicas and workers, for run.json."""
    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return {
        "gpus": [str(detail.get("device_name", "GPU")) for detail in details],
        "cpu": platform.processor() or platform.machine(),
        "cpu_threads": tf.config.threading.get_intra_op_parallelism_threads() or None,
        "replicas": strategy.num_replicas_in_sync if strategy is not None else 1,
        "workers": workers().count,
    }
