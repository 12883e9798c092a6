"""The largest micro-batch that fits in memory: tried on an accelerator, extrapolated on a CPU.

An accelerator reports "out of memory" and continues. On a CPU the kernel kills the process, so two
small micro-batches are run there, and the difference of their peaks gives the memory of a row.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from tfft.utils.errors import UserError

MEMORY_SHARE = 0.8  # share of the free memory that a micro-batch may use

_SELF = Path("/proc/self")
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


@contextlib.contextmanager
def out_of_memory_errors() -> Iterator[None]:
    """Turn TensorFlow's "out of memory" into an actionable error.

    Raises:
        UserError: the memory of a device was exhausted.
    """
    try:
        yield
    except Exception as error:
        # TensorFlow raises the same class for a full disk, but without "OOM".
        if type(error).__name__ != "ResourceExhaustedError" or "OOM" not in str(error):
            raise
        match = re.search(r"tensor with shape\[([\d,]+)\].*?on (\S+)", str(error))
        tensor = f": a tensor of {match[1].replace(',', ' x ')} on {match[2]}" if match else ""
        raise UserError(
            f"out of memory{tensor}; set train.micro_batch (auto finds one that fits) or "
            "train.remat: true, lower train.batch_size, data.max_length or model.image_size, or "
            "freeze more (method)"
        ) from None


def by_trying(run: Callable[[int], bool], rows: int) -> int:
    """Return the largest of `rows`, `rows` / 2, `rows` / 4, ... 1 that fits.

    Args:
        run: runs a step with a number of rows and returns whether it fits.
        rows: the largest size to try.

    Raises:
        UserError: not even one row fits.
    """
    size = rows
    while not run(size):
        if size == 1:
            raise UserError(
                "train.micro_batch: not even one row fits in the memory; lower data.max_length (or "
                "model.image_size), freeze more (method), or set train.remat: true"
            )
        size = max(1, size // 2)
    return size


def by_measuring(run: Callable[[int], bool], rows: int) -> int:
    """Return the largest of `rows`, `rows` / 2, ... 1 that fits, extrapolated from two small sizes.

    Without Linux' `clear_refs` nothing can be measured, and `rows` is returned.

    Args:
        run: runs a step with a number of rows.
        rows: the largest size to consider.

    Raises:
        UserError: not even one row fits.
    """
    # Two sizes, so that what does not grow with the rows cancels in the difference.
    small, large = max(1, rows // 16), max(2, rows // 8)
    # With fewer than 4 rows the larger of the two would be most of the batch.
    if rows < 4 or not (_SELF / "clear_refs").exists():
        return rows
    # Before the first step: afterwards its memory may still be held.
    free = available()
    baseline = resident()
    # Ascending: memory that the allocator keeps from the larger size would hide the smaller peak.
    peaks = [peak_of(lambda size=size: run(size)) for size in (small, large)]
    bytes_per_row = max(0.0, (peaks[1] - peaks[0]) / (large - small))

    def fits(size: int) -> bool:
        return peaks[0] - baseline + bytes_per_row * (size - small) <= MEMORY_SHARE * free

    return by_trying(fits, rows)


def peak_of(run: Callable[[], object]) -> int:
    """Return the peak memory of this process in bytes while `run` runs (Linux)."""
    with contextlib.suppress(OSError):
        (_SELF / "clear_refs").write_text("5")  # resets the recorded peak
    run()
    # The high-water mark of the resident set, in /proc/self/status.
    return resident("VmHWM")


def resident(name: str = "VmRSS") -> int:
    """Return the resident memory of this process in bytes; with `VmHWM`, its peak."""
    text = (_SELF / "status").read_text(encoding="ascii", errors="replace")
    match = re.search(rf"{name}:\s+(\d+) kB", text)
    return int(match[1]) * 1024 if match else 0  # the kernel's kB are KiB


def available() -> int:
    """Return the bytes that this process may still allocate.

    That is the free memory of the machine, or of the container's cgroup (v2 or v1) if it is less.
    """
    text = Path("/proc/meminfo").read_text(encoding="ascii", errors="replace")
    match = re.search(r"MemAvailable:\s+(\d+) kB", text)
    free = (
        int(match[1]) * 1024 if match else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    )
    # /proc/meminfo shows the machine's memory, also within a container.
    for limit_file, usage_file in _CGROUPS:
        try:
            limit, usage = Path(limit_file).read_text().strip(), int(Path(usage_file).read_text())
        except (OSError, ValueError):
            continue
        if limit.isdigit():  # "max" means no limit
            free = min(free, max(0, int(limit) - usage))
    return free
