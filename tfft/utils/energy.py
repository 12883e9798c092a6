"""Energy measured by the counters of the machine, if it has readable ones; never an estimate.

- CPU: RAPL, through the kernel's `powercap` (Khan et al. 2018, "RAPL in Action"). It counts whole
  packages, other processes included. Since Linux 5.10 only root may read it by default.
- NVIDIA GPUs from Volta on: NVML's total energy, with the package `nvidia-ml-py`.
"""

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")


@dataclass
class _Counter:
    """A counter of microjoules.

    Attributes:
        read: returns the current value.
        last: value at the last reading.
        size: value at which the counter wraps to 0; None: it does not.
    """

    read: Callable[[], int]
    last: int
    size: int | None = None

    def increase(self) -> int:
        """Return the microjoules since the last reading."""
        value = self.read()
        increase, self.last = value - self.last, value
        # A counter that wrapped to 0 has a lower value than before.
        return increase if increase >= 0 or self.size is None else increase + self.size


class Meter:
    """Energy meter of the CPU packages and the GPUs of this process, from its creation on.

    Read it more often than RAPL's counters wrap, which takes some minutes at full load.

    Args:
        powercap: the kernel's folder of RAPL counters.

    Attributes:
        names: the counters, such as `1 CPU package (RAPL)`; empty if nothing is measured.
    """

    def __init__(self, powercap: Path = POWERCAP):
        packages, gpus = _packages(powercap), _gpus()
        self._counters = packages + gpus
        groups = [(packages, "CPU package", "RAPL"), (gpus, "GPU", "NVML")]
        self.names = [
            f"{len(counters)} {device}{'s' if len(counters) > 1 else ''} ({interface})"
            for counters, device, interface in groups
            if counters
        ]

    def joules(self) -> float | None:
        """Return the energy since the last call; None if nothing can be measured."""
        if not self._counters:
            return None
        try:
            return sum(counter.increase() for counter in self._counters) / 1e6
        except (OSError, ValueError):  # a counter has disappeared
            self._counters, self.names = [], []
            return None


def _packages(powercap: Path) -> list[_Counter]:
    """Return the counters of the CPU packages.

    These are the zones `intel-rapl:0`, `:1`, ..., also on AMD, without the zones within them.
    """
    counters = []
    for zone in sorted(powercap.glob("intel-rapl:*")):
        energy = zone / "energy_uj"
        try:
            if (zone / "name").read_text().startswith("package-"):
                first, size = _number(energy), _number(zone / "max_energy_range_uj")
                # The default argument binds the file of this zone.
                counters.append(_Counter(lambda path=energy: _number(path), first, size))
        except (OSError, ValueError):
            continue
    return counters


def _number(path: Path) -> int:
    return int(path.read_text())


def _gpus() -> list[_Counter]:
    """Return the counters of the GPUs that this process may use."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return []
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:  # no driver
        return []
    counters = []
    for name in _visible(nvml):
        try:
            device = (
                nvml.nvmlDeviceGetHandleByIndex(int(name))
                if name.isdigit()
                else nvml.nvmlDeviceGetHandleByUUID(name)
            )

            # NVML counts millijoules, `_Counter` microjoules.
            millijoules = nvml.nvmlDeviceGetTotalEnergyConsumption
            counters.append(_Counter(_reader(nvml, device), 1000 * millijoules(device)))
        except nvml.NVMLError:  # a card before Volta, or a MIG partition
            # Without this GPU the sum would be too low, so no GPU is measured.
            return []
    return counters


def _reader(nvml: Any, device: Any) -> Callable[[], int]:
    """Return a function that reads the microjoules of a GPU."""

    def read() -> int:
        try:
            return 1000 * nvml.nvmlDeviceGetTotalEnergyConsumption(device)
        except nvml.NVMLError as error:
            raise OSError(f"NVML: {error}") from None

    return read


def _visible(nvml: Any) -> list[str]:
    """Return the indices or UUIDs of the GPUs that this process may use."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is None:
        return [str(i) for i in range(nvml.nvmlDeviceGetCount())]
    return [name.strip() for name in names.split(",") if name.strip() not in ("", "-1")]
