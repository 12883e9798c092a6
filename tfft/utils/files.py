"""Files and folders that are whole at any moment, whoever else can write beside them.

A file gets its name once its content is written; a folder is filled under a temporary name, which
is a hidden one. What has a name already is replaced and never written through: a symbolic link
in a run directory cannot send a write elsewhere.
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
    """Return a name of this machine since it was started; host names alone are not unique."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    started = boot.read_text() if boot.is_file() else ""
    return f"{zlib.crc32(f'{platform.node()} {started}'.encode()):08x}"


HOST = _host()
_STARTING = 1.0  # seconds within which a new folder gets its lock
_DAY = 24 * 3600.0


def write_atomic(path: Path, text: str) -> None:
    """Write a text to a temporary name beside `path`, then rename it."""
    temporary = unused(path)
    try:
        with open(temporary, "x", encoding="utf-8") as file:  # "x" follows no link
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def unused(path: Path) -> Path:
    """Return the temporary name of a file that is to be written, after removing what has it."""
    temporary = path.with_name(f".{path.name}")
    temporary.unlink(missing_ok=True)
    return temporary


def open_to_append(path: Path) -> IO[str]:
    """Open a text file to append to it.

    Raises:
        OSError: it is a symbolic link.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o666)

    return open(path, "a", encoding="utf-8", opener=opener)


@contextlib.contextmanager
def temporary_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield a new folder `parent/.NAME-HOST-RANDOM`; remove it, unless it was renamed.

    It has the permissions of any new folder, so that a shared cache can be read by others
    (`tempfile` creates folders for the owner alone). A process that is killed leaves its folder
    behind, which the next call removes: a folder is in use as long as its process holds a lock
    on it. Where another host cannot see the lock, or there are none, a folder is abandoned once
    nothing in it has changed for a day.
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
    """Remove what `temporary_folder` left where its process was killed."""
    pattern = re.compile(rf"\.{re.escape(name)}-([0-9a-f]{{8}})-[0-9a-f]{{8}}")
    for folder in parent.glob(f".{name}-*"):
        if not (match := pattern.fullmatch(folder.name)) or folder.is_symlink():
            continue
        with contextlib.suppress(OSError):  # another process removed it first
            age = time.time() - max(p.stat().st_mtime for p in (folder, *folder.iterdir()))
            if age <= (_STARTING if match[1] == HOST else _DAY):
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
    """Hold the lock of a folder, which ends with the process.

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
