"""What a run says while it works: lines on standard error, and one that is rewritten.

Standard output stays free for answers, so that `tfft predict ... > out.jsonl` holds only those.
"""

import sys
import time

_EVERY = 10.0  # seconds between progress lines where there is no terminal
_state = {"open": False, "last": 0.0, "quiet": False}


def quiet(on: bool) -> None:
    """Say nothing from here on: of several workers, one speaks."""
    _state["quiet"] = on


def log(text: str) -> None:
    """Write a line."""
    if _state["quiet"]:
        return
    if _state["open"]:
        sys.stderr.write("\n")
        _state["open"] = False
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def progress(text: str, last: bool = False) -> None:
    """Rewrite the progress line; without a terminal, write one every ten seconds."""
    if _state["quiet"]:
        return
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[2K" + text)
        sys.stderr.flush()
        _state["open"] = True
        if last:
            sys.stderr.write("\n")
            _state["open"] = False
    elif last or time.monotonic() - _state["last"] >= _EVERY:
        _state["last"] = time.monotonic()
        log(text)
