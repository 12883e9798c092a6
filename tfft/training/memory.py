"""How large a micro-batch fits: tried out on an accelerator, measured and extrapolated on a CPU.

An accelerator answers "out of memory" and goes on; a CPU's process is killed instead, so there two
small micro-batches are run, and the growth of the peak between them tells how much a row needs.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from tfft.utils.errors import UserError

SHARE = 0.8  # of the memory that is free may be used

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
    """Turn TensorFlow's "out of memory" into a line that says what would do.

    Raises:
        UserError: there was not enough.
    """
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "ResourceExhaustedError" or "OOM" not in str(error):
            raise
        found = re.search(r"tensor with shape\[([\d,]+)\].*?on (\S+)", str(error))
        what = f": a tensor of {found[1].replace(',', ' x ')} on {found[2]}" if found else ""
        raise UserError(
            f"out of memory{what}; set train.micro_batch (auto finds one that fits) or "
            "train.remat: true, lower train.batch_size, data.max_length or model.image_size, or "
            "freeze more (method)"
        ) from None


def by_trying(run: Callable[[int], bool], rows: int) -> int:
    """The largest of rows, rows / 2, rows / 4, ... 1 for which `run` says that it fitted.

    Raises:
        UserError: not even one row did.
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
    """The largest of rows, rows / 2, ... 1 whose peak, going by two small ones, fits in what is
    free.

    Raises:
        UserError: not even one row does.
    """
    small, larger = max(1, rows // 16), max(2, rows // 8)
    if rows < 4 or not (_SELF / "clear_refs").exists():
        return rows
    free = available()
    held = resident()
    peaks = [peak_of(lambda size=size: run(size)) for size in (small, larger)]
    a_row = max(0.0, (peaks[1] - peaks[0]) / (larger - small))

    def fits(size: int) -> bool:
        return peaks[0] - held + a_row * (size - small) <= SHARE * free

    return by_trying(fits, rows)


def peak_of(run: Callable[[], object]) -> int:
    """The most memory that this process held while `run` ran, in bytes (Linux)."""
    with contextlib.suppress(OSError):
        (_SELF / "clear_refs").write_text("5")  # forgets the peak so far
    run()
    return resident("VmHWM")


def resident(name: str = "VmRSS") -> int:
    """Bytes that this process holds now; `VmHWM`: at most so far."""
    text = (_SELF / "status").read_text(encoding="ascii", errors="replace")
    match = re.search(rf"{name}:\s+(\d+) kB", text)
    return int(match[1]) * 1024 if match else 0


def available() -> int:
    """Bytes that this process may still take: of the machine, or of its container if that is
    less."""
    text = Path("/proc/meminfo").read_text(encoding="ascii", errors="replace")
    match = re.search(r"MemAvailable:\s+(\d+) kB", text)
    free = (
        int(match[1]) * 1024 if match else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    )
    for limit, used in _CGROUPS:
        try:
            most, now = Path(limit).read_text().strip(), int(Path(used).read_text())
        except (OSError, ValueError):
            continue
        if most.isdigit():
            free = min(free, max(0, int(most) - now))
    return free
