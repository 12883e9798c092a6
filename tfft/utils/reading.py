"""Safe reading of files that users name; all readers open files here.

Such a path may be a device, a FIFO without a writer, or a file larger than the memory. Its content
may be incomplete, or crafted to break a library.
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
LONGEST_LINE = 1 << 24  # characters; also of a cell, which an unclosed quote can extend
LONGEST_TEXT = 1 << 19  # characters; a tokenizer takes some 340 bytes of memory for each


def expanded(path: str | Path) -> Path:
    """Return a path with `~` and `~user` replaced; unchanged if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def is_file(path: Path) -> bool:
    """Return whether a path is a regular file; False also for an invalid path."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, no permission, or a null character
        return False


def open_regular(path: str | Path, limit: int | None = None) -> BinaryIO:
    """Open a regular file for reading.

    Args:
        path: the file.
        limit: largest size in bytes; None: any.

    Raises:
        UserError: it cannot be read, is a folder, FIFO or device, or is larger than `limit`.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:  # a null character
        raise UserError(f"{str(path)!r}: cannot be read: it is not a path") from None
    status = os.fstat(descriptor)
    reason = None
    if not stat.S_ISREG(status.st_mode):
        file_type = "a folder" if stat.S_ISDIR(status.st_mode) else "a FIFO or a device"
        reason = f"is {file_type}, not a regular file"
    elif limit is not None and status.st_size > limit:
        reason = f"has {status.st_size:,} bytes; at most {limit:,} are read"
    if reason is not None:
        os.close(descriptor)
        raise UserError(f"{path}: {reason}")
    return os.fdopen(descriptor, "rb")


def regular_file(path: Path, limit: int) -> Path:
    """Check that a path is a regular file and return it, for a library that opens it itself.

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
        # The size at opening is not enough: a file may grow, and files of /proc report 0.
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UserError(f"{path}: has more than {limit:,} bytes; no more are read")
    return content


def read_text(path: str | Path, limit: int = 16 * MIB) -> str:
    """Return the content of a UTF-8 file without its byte-order mark.

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
        path: the file.
        limit: largest size in bytes.
        kinds: types of values by key; a key whose value may be None may be missing.

    Raises:
        UserError: as `read_text`, or it is not a JSON object with these keys.
    """
    text = read_text(path, limit)
    try:
        value = json.loads(text)
        # JSON can escape a lone surrogate, which cannot be printed or saved.
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
    """Turn any exception of a library for a broken file into a UserError.

    For single calls of libraries that trust their input: zipfile, zlib, numpy, pyarrow, TFDS and
    tokenizers have no common class of errors. Some raise a KeyError from within, and a panic in
    Rust is a BaseException.

    Args:
        message: the file and the expected format: "t.npz: not an npz file".

    Raises:
        UserError: `message` and the library's reason.
    """
    try:
        yield
    except (UserError, Interrupted):
        raise
    except BaseException as error:
        kind = type(error).__name__
        # An exact MemoryError says nothing about the file. Its subclasses in numpy and pyarrow can
        # come from a size that the file claims, so only the name counts.
        if kind in ("MemoryError", "ResourceExhaustedError"):
            raise
        if not isinstance(error, Exception) and kind != "PanicException":
            raise
        reason = " ".join(str(error).split())[:200] or kind
        raise UserError(f"{message}: {printable(reason)}") from None


def parsed(items: Iterable[Any], message: str) -> Iterator[Any]:
    """Iterate over items that a library reads, with each step in `library_errors`.

    Args:
        items: an iterable of the library.
        message: see `library_errors`.
    """
    iterator, end = iter(items), object()
    while True:
        with library_errors(message):
            item = next(iterator, end)
        if item is end:
            return
        yield item


def is_unicode(text: str) -> bool:
    """Return whether a text is free of lone surrogates, which no encoding can write."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """Return a text with escapes of lone surrogates, which paths may hold."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
