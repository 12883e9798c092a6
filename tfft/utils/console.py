"""Log lines and the progress line of a run, on standard error.

Standard output is for results, so that `tfft predict ... > out.jsonl` holds only those.
"""

import sys
import time

_INTERVAL = 10.0  # seconds between progress lines without a terminal
_state = {"open": False, "last": 0.0, "quiet": False}


def quiet(on: bool) -> None:
    """Switch all output off or on; of several workers only the first writes."""
    _state["quiet"] = on


def log(text: str) -> None:
    """Write a line, below the progress line if one is open."""
    if _state["quiet"]:
        return
    if _state["open"]:
        sys.stderr.write("\n")
        _state["open"] = False
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def progress(text: str, last: bool = False) -> None:
    """Rewrite the progress line; without a terminal, write a line every ten seconds.

    Args:
        text: the new content of the line.
        last: whether it is final: it is written in any case, and the next line begins below.
    """
    if _state["quiet"]:
        return
    if sys.stderr.isatty():
        # Return to the first column and erase the line.
        sys.stderr.write("\r\x1b[2K" + text)
        sys.stderr.flush()
        _state["open"] = True
        if last:
            sys.stderr.write("\n")
            _state["open"] = False
    elif last or time.monotonic() - _state["last"] >= _INTERVAL:
        _state["last"] = time.monotonic()
        log(text)
