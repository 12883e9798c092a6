"""Atomic writes of files and folders, safe against other processes and symbolic links.

A file or folder is filled under a hidden temporary name and then renamed, so that it is complete
whenever it is visible. An existing name is replaced, never written through: a symbolic link in a
run directory cannot redirect a write.
"""

import contextlib
import fcntl
import os
import platform
import re
import secrets
import shutil
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def _host() -> str:
    """Return an id of this host and its boot; host names alone are not unique."""
    boot_id_file = Path("/proc/sys/kernel/random/boot_id")
    boot_id = boot_id_file.read_text() if boot_id_file.is_file() else ""
    return f"{zlib.crc32(f'{platform.node()} {boot_id}'.encode()):08x}"


HOST = _host()
_LOCK_DELAY = 1.0  # seconds; a new folder gets its lock within this time
_DAY = 24 * 3600.0  # seconds


def write_atomic(path: Path, text: str) -> None:
    """Write a text file atomically: to a temporary name beside `path`, then rename it."""
    temporary = unused(path)
    try:
        with open(temporary, "x", encoding="utf-8") as file:  # "x" follows no link
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def unused(path: Path) -> Path:
    """Return the temporary name of a file to write, and delete an old file of that name."""
    temporary = path.with_name(f".{path.name}")
    temporary.unlink(missing_ok=True)
    return temporary


def open_to_append(path: Path) -> IO[str]:
    """Open a text file for appending.

    Raises:
        OSError: the path is a symbolic link.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o666)

    return open(path, "a", encoding="utf-8", opener=opener)


@contextlib.contextmanager
def temporary_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield a new folder `parent/.NAME-HOST-RANDOM`; remove it at the end unless it was renamed.

    Unlike folders of `tempfile`, which are for the owner alone, it has the default permissions, so
    that others can read a shared cache. A killed process leaves its folder behind, and the next
    call removes it: a folder is in use while its process holds a lock on it. Another host may not
    see the lock, and some file systems have none; there a folder counts as abandoned when nothing
    in it has changed for a day.
    """
    parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(parent, name)
    folder = parent / f".{name}-{HOST}-{secrets.token_hex(4)}"
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # a file system without locks
            stack.enter_context(locked(folder))
        yield folder


def remove_abandoned(parent: Path, name: str) -> None:
    """Remove the folders of `temporary_folder` whose processes were killed."""
    pattern = re.compile(rf"\.{re.escape(name)}-([0-9a-f]{{8}})-[0-9a-f]{{8}}")
    for folder in parent.glob(f".{name}-*"):
        if not (match := pattern.fullmatch(folder.name)) or folder.is_symlink():
            continue
        with contextlib.suppress(OSError):  # another process may remove it at the same time
            age = time.time() - max(p.stat().st_mtime for p in (folder, *folder.iterdir()))
            if age <= (_LOCK_DELAY if match[1] == HOST else _DAY):
                continue  # its process may be about to lock it
            try:
                with locked(folder):
                    shutil.rmtree(folder, ignore_errors=True)
            except BlockingIOError:
                continue
            except OSError:  # a file system without locks
                if age > _DAY:
                    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder within the context; the kernel releases it with the process.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the file system has no locks.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
