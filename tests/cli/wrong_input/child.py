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
from contextlib import contextmanager

from tests.console import run_command
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


def measured(arguments, stdin):
    """Return the exit code, both outputs and the bytes of peak memory of a command."""
    import keras  # maps TensorFlow's program files

    outcomes, program = [], memory.resident("RssFile")
    with captured_descriptor(2) as from_libraries:
        peak = memory.peak_of(lambda: outcomes.append(run_command(*arguments, stdin=stdin)))
        # A command in a process of its own finds no earlier graphs, and libraries may warn of what
        # is deleted at its end.
        keras.utils.clear_session()
        gc.collect()
    gc.freeze()  # what stays is of imported modules: millions of objects
    [(code, out, err)] = outcomes
    return code, out, err + "".join(from_libraries), peak - program


def main(commands, answers):
    with open(commands, encoding="utf-8") as file:
        cases = json.load(file)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # as the first command would before the import
    with open(answers, "w", encoding="utf-8", buffering=1) as file:
        for name, (arguments, stdin) in cases.items():
            code, stdout, stderr, peak = measured(arguments, stdin)
            answer = {"name": name, "code": code, "stdout": stdout, "stderr": stderr, "peak": peak}
            print(json.dumps(answer), file=file)


if __name__ == "__main__":
    main(*sys.argv[1:])
