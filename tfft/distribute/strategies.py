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

# What a collective says when a worker at its other end is gone.
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)
BFLOAT16_CAPABILITY = (8, 0)  # NVIDIA's Ampere is the first that computes in it


@dataclass(frozen=True)
class Workers:
    """The processes that train together.

    Attributes:
        count: how many.
        index: which of them this one is; the first writes the run directory.
    """

    count: int = 1
    index: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.index == 0


def workers() -> Workers:
    """The workers that TF_CONFIG names; one, where it is not set.

    Raises:
        UserError: TF_CONFIG cannot be understood, or names something that tfft does not run.
    """
    text = os.environ.get("TF_CONFIG", "").strip()
    if not text:
        return Workers()
    try:
        given = json.loads(text)
        cluster, task = given.get("cluster", {}), given.get("task", {})
        kind, index = task.get("type", "worker"), int(task.get("index", 0))
        sizes = {name: len(addresses) for name, addresses in cluster.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"TF_CONFIG: cannot be read: {error}; received {text[:200]!r}") from None
    if not cluster:
        return Workers()
    strange = set(sizes) - {"chief", "worker"}
    if strange:
        names = ", ".join(sorted(strange))
        raise UserError(f"TF_CONFIG: tfft runs chief and worker tasks only; received {names}")
    if kind not in sizes or not 0 <= index < sizes[kind]:
        raise UserError(f"TF_CONFIG: the cluster {sizes} has no task {kind} {index}")
    before = sizes.get("chief", 0) if kind == "worker" else 0
    return Workers(sum(sizes.values()), before + index)


def setup(config: DistributeConfig, seed: int, deterministic: bool) -> tf.distribute.Strategy:
    """Seed every generator, choose the devices, make the strategy.

    Raises:
        UserError: there is no such device, or it cannot compute in the wanted precision.
    """
    keras.utils.set_random_seed(seed)
    if deterministic:
        # Without this, sums of gradients over threads do not repeat themselves exactly.
        tf.config.experimental.enable_op_determinism()
    kind = config.strategy if config.strategy != "auto" else _automatic()
    strategy = _STRATEGIES[kind](config)
    _check_precision(config.precision, kind)
    if strategy.num_replicas_in_sync > 1:
        console.log(f"{kind}: {strategy.num_replicas_in_sync} replicas, {workers().count} workers")
    return strategy


def _automatic() -> str:
    if workers().count > 1:
        return "multi_worker"
    if tf.config.list_physical_devices("TPU"):
        return "tpu"
    return "mirrored" if len(tf.config.list_physical_devices("GPU")) > 1 else "one_device"


def _one_device(config: DistributeConfig) -> tf.distribute.Strategy:
    if config.devices is None:
        return tf.distribute.get_strategy()  # the default: TensorFlow prefers the first GPU
    return tf.distribute.OneDeviceStrategy(f"/{_named(config.devices)[0].lower()}")


def _mirrored(config: DistributeConfig) -> tf.distribute.Strategy:
    return _mirrored_on(None if config.devices is None else tuple(_named(config.devices)))


@lru_cache
def _mirrored_on(devices: tuple[str, ...] | None) -> tf.distribute.Strategy:
    # One for all runs of a process: the collectives of a second one would get the first one's keys.
    return tf.distribute.MirroredStrategy(devices)


def _multi_worker(config: DistributeConfig) -> tf.distribute.Strategy:
    if workers().count < 2:
        raise UserError(
            "distribute.strategy: multi_worker needs TF_CONFIG with two workers or more; "
            "`tfft launch --workers=2 train ...` starts some on this machine"
        )
    return tf.distribute.MultiWorkerMirroredStrategy()


def _tpu(config: DistributeConfig) -> tf.distribute.Strategy:
    found = tf.config.list_physical_devices("TPU")
    if config.tpu is None and not found and not os.environ.get("TPU_NAME"):
        raise UserError(
            "distribute.strategy: no TPU is seen; on a TPU machine install the wheel "
            "tensorflow-tpu==2.20.0 in place of tensorflow (there is none for 2.21), or give "
            "distribute.tpu its name"
        )
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(config.tpu or "local")
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (ValueError, tf.errors.OpError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"distribute.tpu: cannot be used: {reason}. TPUs need the wheel tensorflow-tpu==2.20.0 "
            "in place of tensorflow"
        ) from None


_STRATEGIES = {
    "one_device": _one_device,
    "mirrored": _mirrored,
    "multi_worker": _multi_worker,
    "tpu": _tpu,
}


def _named(devices: Sequence[str]) -> list[str]:
    """Devices as TensorFlow writes them, each checked to be there.

    Several CPUs (`CPU:1`) are logical devices on the one that there is, for trying a strategy out.
    """
    names = [_full_name(device) for device in devices]
    cpus = [int(name.removeprefix("CPU:")) for name in names if name.startswith("CPU:")]
    if cpus and max(cpus) > 0:
        _split_cpu(max(cpus) + 1)
    there = [d.name.removeprefix("/device:") for d in tf.config.list_logical_devices()]
    for given, name in zip(devices, names, strict=True):
        if name not in there:
            raise UserError(f"distribute.devices: no {given}; there are: {', '.join(there)}")
    return names


def _full_name(device: str) -> str:
    name = device.upper().lstrip("/").removeprefix("DEVICE:")
    return name if ":" in name else f"{name}:0"


def _split_cpu(count: int) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    if count > 64:
        raise UserError(f"distribute.devices: at most 64 CPUs (CPU:0 to CPU:63); received {count}")
    try:
        wanted = [tf.config.LogicalDeviceConfiguration()] * count
        tf.config.set_logical_device_configuration(cpu, wanted)
    except RuntimeError:
        return  # devices are in use already: the caller says which there are


def _check_precision(precision: str, kind: str) -> None:
    if precision == "float32" or kind == "tpu":
        return
    gpus = tf.config.list_physical_devices("GPU")
    if precision == "mixed_float16" and not gpus:
        raise UserError(
            "distribute.precision: mixed_float16 needs a GPU; on a CPU use float32 or "
            "mixed_bfloat16"
        )
    for gpu in gpus if precision == "mixed_bfloat16" else ():
        details = tf.config.experimental.get_device_details(gpu)
        capability = details.get("compute_capability", BFLOAT16_CAPABILITY)
        if capability < BFLOAT16_CAPABILITY:
            raise UserError(
                f"distribute.precision: {details.get('device_name', gpu.name)} (compute capability "
                f"{capability[0]}.{capability[1]}) does not compute in bfloat16, which needs 8.0; "
                "use mixed_float16 or float32"
            )


def accelerated() -> bool:
    """Whether there is a GPU or TPU, where XLA is worth its compilation."""
    return any(tf.config.list_physical_devices(kind) for kind in ("GPU", "TPU"))


def sum_over_workers(strategy: tf.distribute.Strategy, value: Any) -> np.ndarray:
    """The sum of what the workers hold, the same on all; every worker must call it alike."""
    value = np.asarray(value)
    if workers().count == 1:
        return value
    local = len(strategy.extended.worker_devices)

    def of_replica(context: Any) -> np.ndarray:
        # One of a worker's replicas carries its value.
        return value * (context.replica_id_in_sync_group % local == 0)

    values = strategy.experimental_distribute_values_from_function(of_replica)
    return np.asarray(strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None))


@contextmanager
def lost_worker_errors(workdir: Path) -> Iterator[None]:
    """Turn the failure of a collective into the line that resumes.

    Raises:
        Interrupted: another worker is gone.
    """
    try:
        yield
    except _LOST as error:
        if workers().count == 1:
            raise
        # TensorFlow leaves the thread pool of the failed collective running in a frame of this
        # traceback. It must go now: at the interpreter's exit it would write to a closed file.
        traceback.clear_frames(error.__traceback__)
        raise Interrupted(
            "another worker was lost; the last checkpoint is kept, and the same command on all "
            f"workers with --workdir={workdir} goes on from it"
        ) from None


def report(strategy: tf.distribute.Strategy | None = None) -> dict[str, object]:
    """What this process computes on."""
    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return {
        "gpus": [str(detail.get("device_name", "GPU")) for detail in details],
        "cpu": platform.processor() or platform.machine(),
        "cpu_threads": tf.config.threading.get_intra_op_parallelism_threads() or None,
        "replicas": strategy.num_replicas_in_sync if strategy is not None else 1,
        "workers": workers().count,
    }
