"""The console script run inside this process, for tests of many commands."""

import contextlib
import io
import sys

from absl import flags

from tfft.cli import __main__ as console


def run_command(*arguments, stdin=""):
    """Run a command and return its exit code, standard output and standard error.

    The modules of the commands are imported again, because importing one defines its flags.
    """
    out, err = io.StringIO(), io.StringIO()
    original = sys.argv, sys.stdin
    sys.argv, sys.stdin = ["tfft", *map(str, arguments)], io.StringIO(stdin)
    code = 0
    for name in [n for n in sys.modules if n.startswith("tfft.cli.") and "__main__" not in n]:
        del sys.modules[name]
    flags_by_module = flags.FLAGS.flags_by_module_dict()
    for module in [m for m in flags_by_module if m.startswith("tfft.")]:
        for flag in list(flags_by_module[module]):
            delattr(flags.FLAGS, flag.name)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            console.main()
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv, sys.stdin = original
    return code, out.getvalue(), err.getvalue()
