"""Run the commands of test_wrong_input.py in this process, one after another, as
`python -m tests.cli.wrong_input.child COMMANDS ANSWERS`.

COMMANDS is a JSON file of name -> [arguments, standard input]. Each answer is a line of JSON,
written as the command ends: a command that hangs is the one after the last line.
"""

import gc
import json
import os
import sys
import tempfile
import time
from contextlib import contextmanager

from tests.console import command
from tfft.training import memory


@contextmanager
def captured_descriptor(number):
    """Yield a list for what libraries write to a file descriptor, past Python's streams."""
    text = []
    with tempfile.TemporaryFile() as file:
        before = os.dup(number)
        os.dup2(file.fileno(), number)
        try:
            yield text
        finally:
            os.dup2(before, number)
            os.close(before)
            file.seek(0)
            text.append(file.read().decode(errors="replace"))


def main(commands, answers):
    with open(commands, encoding="utf-8") as file:
        cases = json.load(file)
    with open(answers, "w", encoding="utf-8", buffering=1) as file:
        for name, (arguments, stdin) in cases.items():
            start = time.monotonic()
            with captured_descriptor(2) as from_libraries:
                code, out, err = command(*arguments, stdin=stdin)
            if "keras" in sys.modules:  # a command of its own process finds no earlier graphs
                sys.modules["keras"].utils.clear_session()
            gc.collect()
            gc.freeze()  # what stays is of imported modules: millions of objects
            answer = {
                "name": name,
                "code": code,
                "stdout": out,
                "stderr": err + "".join(from_libraries),
                "seconds": round(time.monotonic() - start, 2),
                # Of this program's memory: getrusage would count that of the parent, whose copy
                # this process was until it began to run Python.
                "peak": memory.resident("VmHWM"),
            }
            print(json.dumps(answer), file=file)


if __name__ == "__main__":
    main(*sys.argv[1:])
