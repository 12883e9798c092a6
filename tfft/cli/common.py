"""Shared parts of the commands: flags, exit codes, one line for each user error.

Exit codes: 0 done; 1 unexpected error (`__main__`); 2 the user can fix the error; 3 interrupted,
with a line that says how to resume.
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from tfft.config import Config, parse, read
from tfft.training import memory
from tfft.utils.errors import Interrupted, UserError

FLAGS = flags.FLAGS


def define_config() -> None:
    """Define `--config`, `--set` and Model Garden's names for them."""
    flags.DEFINE_string("config", None, "YAML file of the run")
    flags.DEFINE_multi_string("set", [], "override, section.key=value; may be repeated")
    flags.DEFINE_alias("config_file", "config")
    flags.DEFINE_alias("params_override", "set")


def define_workdir(text: str = "run directory") -> None:
    """Define `--workdir` and Model Garden's name for it, with the help `text`."""
    flags.DEFINE_string("workdir", None, text)
    flags.DEFINE_alias("model_dir", "workdir")


def define_backbone() -> None:
    """Define `--backbone`, for runs that saved only the trained variables."""
    flags.DEFINE_string("backbone", None, "where the run's backbone is now, e.g. hf:FOLDER")


def config() -> Config:
    """Return the config of `--config` with the overrides of `--set`.

    Raises:
        UserError: `--config` is missing or has mistakes.
    """
    return parse(raw_config(), where=FLAGS.config)


def raw_config() -> dict[str, Any]:
    """Return the config as nested mappings, not validated.

    Raises:
        UserError: `--config` is missing or is not valid YAML.
    """
    if FLAGS.config is None:
        raise UserError("--config: required and not given")
    return read(FLAGS.config, FLAGS.set)


def workdir() -> Path:
    """Return `--workdir`; by default `runs/` and the config's name."""
    return Path(FLAGS.workdir or f"runs/{Path(FLAGS.config).stem}")


def main(command: Callable[[], None], argv: Sequence[str] | None = None) -> None:
    """Parse the flags, run the command and exit with its code.

    Args:
        command: function of the command's module.
        argv: command line, by default that of the process.
    """
    # Before TensorFlow and transformers are imported, which read them then.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is missing
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # what it warns of, tfft reports
    sys.exit(_code(command, list(argv or sys.argv)))


def _code(command: Callable[[], None], argv: list[str]) -> int:
    try:
        if {"--help", "-h", "-help", "--helpshort", "--helpfull"} & set(argv[1:]):
            print(_help(command))
            return 0
        positional = FLAGS(argv)
        if len(positional) > 1:
            raise UserError(
                f"unexpected argument {positional[1]!r}; flags are written --name=value"
            )
        with memory.out_of_memory_errors():
            command()
    except flags.Error as error:
        return _print_error(str(error).replace("\n", " "), 2)
    except UserError as error:
        return _print_error(str(error), 2)
    except Interrupted as error:
        return _print_error(str(error), 3)
    # The reader of the output closed the pipe, as `head` does: not an error.
    except BrokenPipeError:
        # Python flushes standard output at exit, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # such as a read-only folder or a full disk
        if error.filename is None and error.strerror is None:
            raise
        return _print_error(f"{error.filename or 'the disk'}: {error.strerror}", 2)
    except KeyboardInterrupt:
        return _print_error("interrupted; run the same command to resume at the last checkpoint", 3)
    return 0


def _print_error(text: str, code: int) -> int:
    print("\n".join(f"tfft: {line}" for line in text.split("\n")), file=sys.stderr)
    return code


def _help(command: Callable[[], None]) -> str:
    module = sys.modules[command.__module__]
    flags_by_module = FLAGS.flags_by_module_dict()
    lines = [(module.__doc__ or "").strip(), "", "flags:"]
    for name in dict.fromkeys((command.__module__, __name__)):
        for flag in flags_by_module.get(name, []):
            default = "" if flag.default in (None, []) else f" (default: {flag.default})"
            lines.append(f"  --{flag.name}: {flag.help}{default}")
    return "\n".join(lines)
