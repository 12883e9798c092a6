"""Files of users, which may be anything: every reader opens them here.

A path that a user names may be a device, a FIFO that nobody writes to, or larger than the memory;
what lies there may be torn, or made to break a library.
"""

import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import TypeAdapter, ValidationError

from tfft.utils.errors import Interrupted, UserError

MIB = 1 << 20
LONGEST_LINE = 1 << 24  # characters; also of a cell, which an unclosed quote may make longer
LONGEST_TEXT = 1 << 19  # characters: a tokenizer takes some 340 bytes of memory for each


def expanded(path: str | Path) -> Path:
    """Return a path with `~` and `~user` replaced; as it is where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def is_file(path: Path) -> bool:
    """Return whether a path is a regular file; False also for what cannot be a path."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or not to be looked at
        return False


def open_regular(path: str | Path, limit: int | None = None) -> BinaryIO:
    """Open a regular file for reading.

    Args:
        limit: bytes that it may have.

    Raises:
        UserError: it cannot be read, is a folder, FIFO or device, or is larger than `limit`.
    """
    try:
        # Without O_NONBLOCK this waits until somebody writes to a FIFO.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:  # a null character
        raise UserError(f"{str(path)!r}: cannot be read: it is not a path") from None
    status = os.fstat(descriptor)
    reason = None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a FIFO or a device"
        reason = f"is {kind}, not a regular file"
    elif limit is not None and status.st_size > limit:
        reason = f"has {status.st_size:,} bytes; at most {limit:,} are read"
    if reason is not None:
        os.close(descriptor)
        raise UserError(f"{path}: {reason}")
    return os.fdopen(descriptor, "rb")


def regular_file(path: Path, limit: int) -> Path:
    """Return `path`, for a library that opens it itself.

    Raises:
        UserError: as `open_regular`.
    """
    open_regular(path, limit).close()
    return path


def read_bytes(path: str | Path, limit: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        UserError: as `open_regular`.
    """
    with open_regular(path, limit) as file:
        content = file.read(limit + 1)  # a file may grow, and those of /proc have no size
    if len(content) > limit:
        raise UserError(f"{path}: has more than {limit:,} bytes; no more are read")
    return content


def read_text(path: str | Path, limit: int = 16 * MIB) -> str:
    """Return a UTF-8 text without its byte-order mark.

    Raises:
        UserError: as `open_regular`, or it is not UTF-8.
    """
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def read_json(path: str | Path, limit: int = 256 * MIB, **kinds: Any) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        kinds: keys with the types of their values; where one may be None, the key may be missing.

    Raises:
        UserError: as `read_text`, or it was cut or changed since.
    """
    text = read_text(path, limit)
    try:
        value = json.loads(text)
        # Half of a surrogate pair can be escaped in JSON, and then neither printed nor saved.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {printable(str(error))}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a JSON object. Received: {type(value).__name__}")
    for key, kind in kinds.items():
        try:
            TypeAdapter(kind).validate_python(value.get(key), strict=True)
        except ValidationError:
            raise UserError(
                f"{path}: {key!r} is missing or of the wrong type; the file was changed since it "
                "was written"
            ) from None
    return value


@contextmanager
def library_errors(message: str) -> Iterator[None]:
    """Turn what a library raises for a broken file into a UserError: `message` and the reason.

    For single calls of libraries that trust what they read and so raise anything: zipfile, zlib,
    numpy, pyarrow, TFDS and tokenizers have no common class; some raise KeyError from within, and
    Rust's panic is a BaseException.

    Args:
        message: the file, and what it should have been: "t.npz: not an npz file".

    Raises:
        UserError: `message` and the library's reason.
    """
    try:
        yield
    except (UserError, Interrupted):
        raise
    except BaseException as error:
        kind = type(error).__name__
        # By exact name: numpy's and pyarrow's own kinds also follow from a size that a file claims.
        if kind in ("MemoryError", "ResourceExhaustedError"):
            raise  # says nothing about the file
        if not isinstance(error, Exception) and kind != "PanicException":
            raise
        reason = " ".join(str(error).split())[:200] or kind
        raise UserError(f"{message}: {printable(reason)}") from None


def parsed(items: Iterable[Any], what: str) -> Iterator[Any]:
    """Iterate over what a library reads, each step as in `library_errors`."""
    iterator, end = iter(items), object()
    while True:
        with library_errors(what):
            item = next(iterator, end)
        if item is end:
            return
        yield item


def is_unicode(text: str) -> bool:
    """Return whether a text has no lone surrogates, which no encoding can write."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """Return a text with lone surrogates, as paths may hold them, written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
