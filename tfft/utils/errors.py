"""Errors that a user can fix: one line each and exit code 2, never a traceback."""

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class UserError(Exception):
    """A mistake that the user can fix. The command line prints the message and exits with 2."""


class Interrupted(Exception):
    """A run stopped on request and saved its state.

    The message says how to resume it. The command line exits with 3.
    """


def nearest(name: object, options: Iterable[object]) -> str:
    """Return a hint to the nearest option, to append to an error message.

    Args:
        name: the unknown name.
        options: the valid names.

    Returns:
        `"; did you mean 'x'?"`; without a similar option `"; valid: a, b"` if there are at most
        30; else an empty string.
    """
    names = [str(option) for option in options]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    if 0 < len(names) <= 30:
        return f"; valid: {', '.join(map(_one_line, names))}"
    return ""


def _one_line(name: str) -> str:
    """Return a name as it is, or quoted where a table's header put a line break into it."""
    return name if name.isprintable() else repr(name)


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: name of the module.
        extra: the extra of tfft that installs it.

    Raises:
        UserError: the package is not installed.
        ImportError: the package is installed but cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # The package is installed, but lacks a module that it needs itself.
        if error.name != module.split(".")[0]:
            raise
        raise UserError(
            f"{module.split('.')[0]} is needed here: pip install 'tfft[{extra}]'"
        ) from None
