"""Energy by the machine's own counters, where it has some that may be read; never an estimate.

- CPU: RAPL, the kernel's `powercap` (Khan et al. 2018, "RAPL in Action"): whole packages, with
  whatever else they do. Since Linux 5.10 only root may read them unless an administrator allows it.
- NVIDIA GPUs: NVML's total energy, with the package `nvidia-ml-py`, from Volta on.
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
    """Microjoules that only grow, until they begin again at `size` (None: they do not)."""

    read: Callable[[], int]
    last: int
    size: int | None = None

    def grown(self) -> int:
        """Since it was last asked."""
        now = self.read()
        grown, self.last = now - self.last, now
        return grown if grown >= 0 or self.size is None else grown + self.size


class Meter:
    """Counts from when it was made. To be asked more often than RAPL's counters begin again, which
    is some minutes at full load.

    Attributes:
        names: what is measured, such as `1 CPU package (RAPL)`; empty where nothing is.
    """

    def __init__(self, powercap: Path = POWERCAP):
        packages, gpus = _packages(powercap), _gpus()
        self._counters = packages + gpus
        kinds = [(packages, "CPU package", "RAPL"), (gpus, "GPU", "NVML")]
        self.names = [
            f"{len(found)} {what}{'s' if len(found) > 1 else ''} ({how})"
            for found, what, how in kinds
            if found
        ]

    def joules(self) -> float | None:
        """Since it was last asked; None where nothing can be measured (any more)."""
        if not self._counters:
            return None
        try:
            return sum(counter.grown() for counter in self._counters) / 1e6
        except (OSError, ValueError):  # a counter that went away
            self._counters, self.names = [], []
            return None


def _packages(powercap: Path) -> list[_Counter]:
    """The zones `intel-rapl:0`, `:1`, ... (AMD's are called so too), not the parts within them."""
    found = []
    for zone in sorted(powercap.glob("intel-rapl:*")):
        energy = zone / "energy_uj"
        try:
            if (zone / "name").read_text().startswith("package-"):
                first, size = _number(energy), _number(zone / "max_energy_range_uj")
                found.append(_Counter(lambda path=energy: _number(path), first, size))
        except (OSError, ValueError):
            continue
    return found


def _number(path: Path) -> int:
    return int(path.read_text())


def _gpus() -> list[_Counter]:
    """Those that this process may use."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return []
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:  # no driver
        return []
    found = []
    for name in _visible(nvml):
        try:
            device = (
                nvml.nvmlDeviceGetHandleByIndex(int(name))
                if name.isdigit()
                else nvml.nvmlDeviceGetHandleByUUID(name)
            )

            millijoules = nvml.nvmlDeviceGetTotalEnergyConsumption
            found.append(_Counter(_reading(nvml, device), 1000 * millijoules(device)))
        except nvml.NVMLError:  # too old a card, or a part of one
            return []
    return found


def _reading(nvml: Any, device: Any) -> Callable[[], int]:
    def read() -> int:
        try:
            return 1000 * nvml.nvmlDeviceGetTotalEnergyConsumption(device)
        except nvml.NVMLError as error:
            raise OSError(f"NVML: {error}") from None

    return read


def _visible(nvml: Any) -> list[str]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return [str(i) for i in range(nvml.nvmlDeviceGetCount())]
    return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
