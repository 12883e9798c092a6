"""The import of TensorFlow: its options before it, and no messages of its libraries.

oneDNN holds kernels for CPUs. TensorFlow uses them by default only on CPUs with newer instructions
for dot products (AVX512-VNNI and later). With AVX2 alone they are faster too: a training step of
MiniLM by a quarter on an AMD EPYC (`TF_ENABLE_ONEDNN_OPTS=0 python benchmarks/train_step.py`,
2026-11-30).
"""

import contextlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
# CPUs with one of these have oneDNN on by default (tensorflow/core/util/util.cc, IsMKLEnabled).
_ON_BY_DEFAULT = {"avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"}
# TensorFlow's wheels: for TPUs and for CPUs alone it comes under another name.
_WHEELS = ("tensorflow", "tensorflow-tpu", "tensorflow-cpu")
# Standard error belongs to the process: of two threads only one may redirect it.
_IMPORT_LOCK = threading.Lock()
_CPUINFO = Path("/proc/cpuinfo")


def enable_onednn() -> None:
    """Turn oneDNN on for x86 CPUs with AVX2.

    It has an effect only before TensorFlow is imported. A value that the user has set is kept.
    """
    if "tensorflow" not in sys.modules and "avx2" in cpu_flags():
        os.environ.setdefault(ONEDNN, "1")


def onednn_status() -> str:
    """Return whether oneDNN is on, `on` or `off`, with the reason."""
    value = os.environ.get(ONEDNN)
    if value is None:
        on = bool(_ON_BY_DEFAULT & set(cpu_flags()))
        return f"{'on' if on else 'off'} (TensorFlow's default for this CPU)"
    return f"{'on' if value.lower() in ('1', 'true') else 'off'} ({ONEDNN}={value})"


def load_tensorflow() -> None:
    """Import TensorFlow and suppress the lines that its libraries write on import.

    They are written to the file descriptor before any log level takes effect, so standard error is
    redirected; if the import fails, the captured lines are printed. If it ends the process, they
    are lost: `import tensorflow` by itself shows them.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is missing
    with _IMPORT_LOCK, contextlib.ExitStack() as stack:
        if "tensorflow" not in sys.modules:
            stack.enter_context(_captured_stderr())
        import tensorflow  # noqa: F401
        import tensorflow_text  # noqa: F401


@contextlib.contextmanager
def _captured_stderr() -> Iterator[None]:
    """Discard what is written to the descriptor of standard error, unless there is an exception."""
    try:
        stderr = os.dup(2)
    except OSError:  # closed, as in a daemon
        yield
        return
    with tempfile.TemporaryFile() as captured:
        if sys.stderr is not None:
            sys.stderr.flush()
        os.dup2(captured.fileno(), 2)
        try:
            yield
        except BaseException:
            captured.seek(0)
            os.write(stderr, captured.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def cpu_flags() -> Collection[str]:
    """Return the instruction sets of the CPU as Linux names them; empty elsewhere."""
    try:
        match = re.search(r"^flags\s*:(.*)$", _CPUINFO.read_text(encoding="ascii"), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        return ()
    return match[1].split() if match else ()


def package_version(name: str) -> str:
    """Return the installed version of a package; `tensorflow` may be its wheel for TPUs or
    for CPUs alone.

    Raises:
        importlib.metadata.PackageNotFoundError: it is not installed.
    """
    for candidate in _WHEELS if name == "tensorflow" else (name,):
        try:
            return version(candidate)
        except PackageNotFoundError:
            continue
    raise PackageNotFoundError(name)
