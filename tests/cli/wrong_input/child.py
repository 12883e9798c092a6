"""Run the commands of test_wrong_input.py in this process, one after another, as
`python -m tests.cli.wrong_input.child COMMANDS ANSWERS`.

COMMANDS is a JSON file of name -> [arguments, standard input]. Each answer is a line of JSON,
written as the command ends: a command that hangs is the one after the last line.

The peak memory is counted without the pages of program files that were mapped before the command.
They belong to all processes and can be evicted, and how much of TensorFlow's libraries the kernel
maps differs between machines by hundreds of MiB.
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
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # as the first command would before the import
    import keras  # maps TensorFlow's program files

    with open(answers, "w", encoding="utf-8", buffering=1) as file:
        for name, (arguments, stdin) in cases.items():
            start, program = time.monotonic(), memory.resident("RssFile")
            outcomes = []
            with captured_descriptor(2) as from_libraries:
                peak = memory.peak_of(lambda: outcomes.append(command(*arguments, stdin=stdin)))
                # A command of its own process finds no earlier graphs; and what it leaves is deleted
                # when it ends, of which libraries may warn.
                keras.utils.clear_session()
                gc.collect()
            gc.freeze()  # what stays is of imported modules: millions of objects
            [(code, out, err)] = outcomes
            answer = {
                "name": name,
                "code": code,
                "stdout": out,
                "stderr": err + "".join(from_libraries),
                "seconds": round(time.monotonic() - start, 2),
                "peak": peak - program,
            }
            print(json.dumps(answer), file=file)


if __name__ == "__main__":
    main(*sys.argv[1:])
