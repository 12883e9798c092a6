"""What a user can fix, and how it is said: one line, exit code 2, never a traceback."""

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class UserError(Exception):
    """A mistake that the user can fix; the message is what they see, exit code 2."""


class Interrupted(Exception):
    """The run was asked to stop and saved its state; the message resumes it, exit code 3."""


def nearest(name: object, options: Iterable[object]) -> str:
    """Return `"; did you mean 'x'?"`, the options if they are few, or nothing."""
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
    """Import an optional package, or name the extra that installs it.

    Raises:
        UserError: the package is not installed. A package that is installed but broken
            raises its own ImportError: "not installed" would be the wrong answer.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise
        raise UserError(
            f"{module.split('.')[0]} is needed here: pip install 'tfft[{extra}]'"
        ) from None
