"""Devices, precision and seeds."""

import platform

import keras
import tensorflow as tf

from tfft.config import DistributeConfig
from tfft.errors import UserError


def setup(config: DistributeConfig, seed: int) -> tf.distribute.Strategy:
    """Seed every generator, make ops repeat themselves exactly, choose the device.

    Raises:
        UserError: there is no such device, or it cannot compute in the wanted precision.
    """
    keras.utils.set_random_seed(seed)
    # The same config gives the same weights: without this, sums of gradients over threads do not.
    tf.config.experimental.enable_op_determinism()
    device = _device(config)
    if config.precision == "mixed_float16" and device.device_type == "CPU":
        raise UserError(
            "distribute.precision: mixed_float16 needs a GPU; on a CPU use float32 or "
            "mixed_bfloat16"
        )
    if config.devices is None:
        return tf.distribute.get_strategy()  # the default: TensorFlow prefers the first GPU
    name = device.name.removeprefix("/physical_device:")
    return tf.distribute.OneDeviceStrategy(f"/{name.lower()}")


def _device(config: DistributeConfig) -> tf.config.PhysicalDevice:
    devices = tf.config.list_physical_devices()
    if config.devices is not None:
        wanted = config.devices[0].upper().lstrip("/").removeprefix("DEVICE:")
        wanted = wanted if ":" in wanted else f"{wanted}:0"
        found = [d for d in devices if d.name.removeprefix("/physical_device:") == wanted]
        if not found:
            names = ", ".join(d.name.removeprefix("/physical_device:") for d in devices)
            raise UserError(f"distribute.devices: no {config.devices[0]}; there are: {names}")
        return found[0]
    gpus = [d for d in devices if d.device_type == "GPU"]
    return gpus[0] if gpus else devices[0]


def report() -> dict[str, object]:
    """What this process computes on."""
    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return {
        "gpus": [str(detail.get("device_name", "GPU")) for detail in details],
        "cpu": platform.processor() or platform.machine(),
        "cpu_threads": tf.config.threading.get_intra_op_parallelism_threads() or None,
    }
