"""What the binaries share: flags in, an exit code out, one line for a user's mistake.

Exit codes: 0 done; 1 an unexpected error (`__main__`); 2 the user can fix it; 3 interrupted, and
the line that resumes.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from tfft.config import Config, parse, read
from tfft.training import memory
from tfft.utils.errors import Interrupted, UserError

FLAGS = flags.FLAGS


def define_config() -> None:
    """`--config`, `--set` and Model Garden's names for them."""
    flags.DEFINE_string("config", None, "YAML file of the run")
    flags.DEFINE_multi_string("set", [], "override, section.key=value; may be repeated")
    flags.DEFINE_alias("config_file", "config")
    flags.DEFINE_alias("params_override", "set")


def define_workdir(text: str = "run directory") -> None:
    """`--workdir` and Model Garden's name for it."""
    flags.DEFINE_string("workdir", None, text)
    flags.DEFINE_alias("model_dir", "workdir")


def define_backbone() -> None:
    """`--backbone`, for runs that saved only what they trained."""
    flags.DEFINE_string("backbone", None, "where the run's backbone is now, e.g. hf:FOLDER")


def config() -> Config:
    """The config that the flags name.

    Raises:
        UserError: there is none, or it has mistakes.
    """
    return parse(raw(), where=FLAGS.config)


def raw() -> dict[str, Any]:
    """The config that the flags name as nested mappings, not validated.

    Raises:
        UserError: there is none, or it is no YAML.
    """
    if FLAGS.config is None:
        raise UserError("--config: required and not given")
    return read(FLAGS.config, FLAGS.set)


def workdir() -> Path:
    """`--workdir`, by default `runs/` and the config's name."""
    return Path(FLAGS.workdir or f"runs/{Path(FLAGS.config).stem}")


def load_tensorflow() -> None:
    """Import TensorFlow without the lines that its libraries write as they load.

    They come before any log level counts, so standard error is held back; if the import fails,
    what was held back is shown.
    """
    with tempfile.TemporaryFile() as held:
        sys.stderr.flush()
        shown = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
            import tensorflow_text  # noqa: F401
        except BaseException:
            held.seek(0)
            os.write(shown, held.read())
            raise
        finally:
            os.dup2(shown, 2)
            os.close(shown)


def main(verb: Callable[[], None], argv: Sequence[str] | None = None) -> None:
    """Parse the flags, run the verb, exit."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is missing
    sys.exit(_code(verb, list(argv or sys.argv)))


def _code(verb: Callable[[], None], argv: list[str]) -> int:
    try:
        if {"--help", "-h", "-help", "--helpshort", "--helpfull"} & set(argv[1:]):
            print(_help(verb))
            return 0
        rest = FLAGS(argv)
        if len(rest) > 1:
            raise UserError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
        with memory.out_of_memory_errors():
            verb()
    except flags.Error as error:
        return _say(str(error).replace("\n", " "), 2)
    except UserError as error:
        return _say(str(error), 2)
    except Interrupted as error:
        return _say(str(error), 3)
    except BrokenPipeError:  # the reader of our output left: nothing is wrong here
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a folder that cannot be written, a full disk
        if error.filename is None and error.strerror is None:
            raise
        return _say(f"{error.filename or 'the disk'}: {error.strerror}", 2)
    except KeyboardInterrupt:
        return _say("interrupted; the same command goes on at the last checkpoint", 3)
    return 0


def _say(text: str, code: int) -> int:
    print("\n".join(f"tfft: {line}" for line in text.split("\n")), file=sys.stderr)
    return code


def _help(verb: Callable[[], None]) -> str:
    module = sys.modules[verb.__module__]
    own = FLAGS.flags_by_module_dict()
    lines = [(module.__doc__ or "").strip(), "", "flags:"]
    for name in dict.fromkeys((verb.__module__, __name__)):
        for flag in own.get(name, []):
            default = "" if flag.default in (None, []) else f" (default: {flag.default})"
            lines.append(f"  --{flag.name}: {flag.help}{default}")
    return "\n".join(lines)
