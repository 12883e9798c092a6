"""The energy meter on fake counters."""

import sys
import types

import pytest

from tfft.utils.energy import Meter


@pytest.fixture
def powercap(tmp_path, monkeypatch):
    """Fake counters of two packages, the memory of one and the whole platform; no GPU."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    for zone, name in [
        ("intel-rapl:0", "package-0"),
        ("intel-rapl:1", "package-1"),
        ("intel-rapl:0:0", "dram"),
        ("intel-rapl:2", "psys"),
    ]:
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "name").write_text(name + "\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("262143328850\n")
        set_counter(tmp_path, zone, 1000)
    return tmp_path


def set_counter(powercap, zone, microjoules):
    (powercap / zone / "energy_uj").write_text(f"{microjoules}\n")


def test_the_meter_counts_packages_alone_since_the_last_reading(powercap):
    meter = Meter(powercap)
    assert meter.names == ["2 CPU packages (RAPL)"]
    set_counter(powercap, "intel-rapl:0", 3_001_000)
    set_counter(powercap, "intel-rapl:1", 501_000)
    set_counter(powercap, "intel-rapl:0:0", 9_000_000)
    set_counter(powercap, "intel-rapl:2", 9_000_000)
    assert meter.joules() == pytest.approx(3.5)
    assert meter.joules() == 0


def test_a_counter_that_wraps(powercap):
    set_counter(powercap, "intel-rapl:0", 262_143_000_000)
    meter = Meter(powercap)
    set_counter(powercap, "intel-rapl:0", 671_150)
    assert meter.joules() == pytest.approx(1.0)


def test_unreadable_counters_are_not_measured(powercap):
    for zone in ("intel-rapl:0", "intel-rapl:1"):
        (powercap / zone / "energy_uj").unlink()
    meter = Meter(powercap)
    assert meter.names == [] and meter.joules() is None


def test_a_counter_that_disappears_ends_the_measurement(powercap):
    meter = Meter(powercap)
    (powercap / "intel-rapl:1" / "energy_uj").unlink()
    assert meter.joules() is None and meter.joules() is None and meter.names == []


class NVMLError(Exception):
    pass


@pytest.fixture
def nvml(monkeypatch):
    """A fake module of three GPUs, whose attribute `energy` holds their millijoules."""
    module = types.ModuleType("pynvml")
    energy = {0: 10_000, 1: 20_000, 2: 30_000}
    module.NVMLError, module.energy = NVMLError, energy
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetCount = lambda: 3
    module.nvmlDeviceGetHandleByIndex = lambda i: i
    module.nvmlDeviceGetHandleByUUID = lambda name: {"GPU-b": 1}[name]

    def read(device):
        if energy[device] is None:
            raise NVMLError("not supported")
        return energy[device]

    module.nvmlDeviceGetTotalEnergyConsumption = read
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


@pytest.mark.parametrize(
    ("visible", "counted"),
    [(None, {0, 1, 2}), ("0,2", {0, 2}), ("GPU-b", {1}), ("", set()), ("-1", set())],
)
def test_only_visible_gpus_are_counted(nvml, visible, counted, monkeypatch, tmp_path):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    meter = Meter(tmp_path)
    for i in nvml.energy:
        nvml.energy[i] += 1000 * 2**i
    if not counted:
        assert meter.joules() is None
        return
    assert meter.joules() == pytest.approx(sum(2**i for i in counted))
    assert meter.names == [f"{len(counted)} GPU{'s' if len(counted) > 1 else ''} (NVML)"]


def test_a_gpu_without_a_counter_ends_the_measurement(nvml, monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvml.energy[1] = None
    assert Meter(tmp_path).joules() is None  # the sum of two of three GPUs would be wrong
    nvml.energy[1] = 1
    meter = Meter(tmp_path)
    nvml.energy[2] = None
    assert meter.joules() is None


def test_without_a_driver_no_gpu_is_counted(nvml, tmp_path):
    def init():
        raise NVMLError("driver not loaded")

    nvml.nvmlInit = init
    assert Meter(tmp_path).names == []
