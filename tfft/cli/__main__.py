"""The console script: `tfft COMMAND ...`."""

import importlib
import signal
import sys
import tempfile
import traceback

from tfft.utils.errors import nearest

COMMANDS = {
    "init": "write a first config for the data at hand: --data=FILE [--test=FILE] [--output=FILE]",
    "train": "fine-tune: --config=FILE [--set=a.b=c ...] [--workdir=DIR]",
    "tune": "search for hyperparameters: --config=FILE [--parallel=N] [--workdir=DIR]",
    "evaluate": "metrics of a split or a file: --workdir=DIR [--split=test] [--data=FILE]",
    "predict": "answer raw rows: --workdir=DIR or --export=DIR, --input=FILE",
    "export": "publish a model: --workdir=DIR [--format=saved_model|huggingface|litert|onnx|keras]",
    "serve": "try an export out over TF Serving's REST and gRPC: --workdir=DIR [--rest_api_port=N]",
    "show": "resolved config, mask and memory, training nothing: --config=FILE",
    "lr-find": "loss at rising learning rates, with a plot: --config=FILE",
    "profile": "targets, lengths, duplicates, leaks and bad rows of a data set: --config=FILE",
    "launch": "several workers on this machine: --workers=N [--restarts=R] train --config=...",
    "doctor": "what is installed and whether it works",
    "schema": "the JSON schema of the YAML",
}


def main() -> None:
    """Run the command's module and exit with its code."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        sys.exit(0 if arguments else 2)
    command = arguments[0]
    if command in ("--version", "version"):
        from tfft import __version__

        print(__version__)
        sys.exit(0)
    if command not in COMMANDS:
        from tfft.config import renamed

        suggestion = renamed.hint(renamed.COMMANDS, command) or nearest(command, COMMANDS)
        print(f"tfft: unknown command {command!r}{suggestion}", file=sys.stderr)
        sys.exit(2)
    # SIGTERM acts like Ctrl-C, so that a command removes its temporary folders and stops the
    # processes that it started.
    previous_handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        module = importlib.import_module(f"tfft.cli.{command.replace('-', '_')}")
        module.main([f"tfft {command}", *arguments[1:]])
    except KeyboardInterrupt:  # before the command handles signals, or after it has finished
        print("tfft: interrupted", file=sys.stderr)
        sys.exit(3)
    except Exception as error:
        sys.exit(_report_unexpected(error))
    finally:
        signal.signal(signal.SIGTERM, previous_handler)


def _report_unexpected(error: Exception) -> int:
    """Print an unexpected error in one line, write its traceback to a file, and return 1."""
    descriptor, path = tempfile.mkstemp(prefix="tfft-", suffix=".log")
    with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as log:
        log.writelines(traceback.format_exception(error))
    reason = " ".join(str(error).split())[:200]
    print(f"tfft: {type(error).__name__}: {reason}; the traceback is in {path}", file=sys.stderr)
    return 1


def _usage() -> str:
    lines = [f"  {name:<9} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: tfft COMMAND [--flag=value ...]",
            "",
            *lines,
            "",
            "To begin with a table of your own:",
            "  tfft init --data=reviews.csv    # writes reviews.yaml",
            "  tfft train --config=reviews.yaml",
            "",
            "tfft COMMAND --help: an example and the flags of a command",
        ]
    )


if __name__ == "__main__":
    main()
