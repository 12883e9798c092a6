"""oneDNN is turned on before TensorFlow is imported, where it is faster and the user is silent."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest

from tfft.utils import tensorflow_setup

AVX2, VNNI = "flags\t\t: fpu sse avx2 fma\n", "flags\t\t: avx2 avx512_vnni\n"


@pytest.fixture
def cpu(monkeypatch, tmp_path):
    """A function that sets the content of /proc/cpuinfo; the variable is unset."""
    monkeypatch.setattr(tensorflow_setup, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setenv(tensorflow_setup.ONEDNN, "")  # so that it is restored afterwards
    monkeypatch.delenv(tensorflow_setup.ONEDNN)
    return (tmp_path / "cpuinfo").write_text


@pytest.mark.parametrize(
    ("cpuinfo", "user", "expected"),
    [
        (AVX2, None, "1"),
        (VNNI, None, "1"),
        (AVX2, "0", "0"),
        ("flags\t\t: sse4_2\n", None, None),
        ("Features\t: asimd\n", None, None),
    ],
)
def test_it_is_on_with_avx2_unless_the_user_says_otherwise(
    cpu, monkeypatch, cpuinfo, user, expected
):
    cpu(cpuinfo)
    monkeypatch.delitem(sys.modules, "tensorflow")
    if user is not None:
        monkeypatch.setenv(tensorflow_setup.ONEDNN, user)
    tensorflow_setup.enable_onednn()
    assert os.environ.get(tensorflow_setup.ONEDNN) == expected


def test_after_tensorflow_is_imported_nothing_changes(cpu):
    cpu(AVX2)
    assert "tensorflow" in sys.modules
    tensorflow_setup.enable_onednn()
    assert tensorflow_setup.ONEDNN not in os.environ


def test_status_gives_the_reason(cpu, monkeypatch):
    cpu(AVX2)
    assert tensorflow_setup.onednn_status() == "off (TensorFlow's default for this CPU)"
    cpu(VNNI)
    assert tensorflow_setup.onednn_status() == "on (TensorFlow's default for this CPU)"
    for value, state in (("0", "off"), ("1", "on"), ("True", "on")):
        monkeypatch.setenv(tensorflow_setup.ONEDNN, value)
        assert tensorflow_setup.onednn_status() == f"{state} ({tensorflow_setup.ONEDNN}={value})"


def test_no_cpuinfo_changes_nothing(cpu):
    tensorflow_setup.enable_onednn()
    assert tensorflow_setup.cpu_flags() == () and tensorflow_setup.ONEDNN not in os.environ


PRINT_ONEDNN = (
    "from tensorflow.python.util import _pywrap_util_port as port\nprint(port.IsMklEnabled())"
)


def output_of(script, **variables):
    """Return standard output and standard error of a script that imports TensorFlow."""
    unset = (tensorflow_setup.ONEDNN, "TF_CPP_MIN_LOG_LEVEL")
    environment = {k: v for k, v in os.environ.items() if k not in unset}
    command, variables = [sys.executable, "-c", script], {**environment, **variables}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def imported_by_tfft():
    """The output of a process in which tfft imports TensorFlow, and that asks for oneDNN."""
    return output_of(
        "import tfft, sys; tfft.train; assert 'tensorflow_text' in sys.modules\n" + PRINT_ONEDNN
    )


def test_tensorflow_follows_the_import_of_tfft(imported_by_tfft):
    """TensorFlow itself says whether its oneDNN kernels are on."""
    if "avx2" not in tensorflow_setup.cpu_flags():
        pytest.skip("the CPU has no AVX2")
    # With AVX512-VNNI the first case says nothing of tfft, the second does.
    assert imported_by_tfft[0] == "True\n"
    off = {tensorflow_setup.ONEDNN: "0"}
    assert output_of("import tfft, tensorflow\n" + PRINT_ONEDNN, **off)[0] == "False\n"


def test_an_import_by_tfft_is_silent(imported_by_tfft):
    """The user cannot act on what TensorFlow's libraries write when they are imported."""
    stdout, stderr = imported_by_tfft
    assert stdout in ("True\n", "False\n") and stderr == ""


IMPORT = """
import os, sys, types
from concurrent.futures import ThreadPoolExecutor
from tfft.utils import tensorflow_setup

class Finder:
    def find_spec(name, path=None, target=None):
        from importlib.machinery import ModuleSpec
        if name in ("tensorflow", "tensorflow_text"):
            return ModuleSpec(name, Finder)

    def create_module(spec):
        return None

    def exec_module(module):
        import time
        time.sleep(0.2)
        os.write(2, b"noise of a library\\n") if sys.argv[1] != "closed" else None

sys.meta_path.insert(0, Finder)
with ThreadPoolExecutor(2) as pool:
    for result in [pool.submit(tensorflow_setup.load_tensorflow) for _ in range(2)]:
        result.result()
tensorflow_setup.load_tensorflow()
print("imported")
if sys.argv[1] != "closed":
    os.write(2, b"after it\\n")
"""


@pytest.mark.parametrize("stderr", ["open", "closed"])
def test_threads_leave_standard_error_as_it_was(stderr):
    command = [sys.executable, "-c", IMPORT, stderr]
    if stderr == "closed":
        command = ["sh", "-c", 'exec 2>&-; exec "$@"', "sh", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    expected = "after it\n" if stderr == "open" else ""
    assert (done.returncode, done.stdout, done.stderr) == (0, "imported\n", expected)


def test_tensorflow_of_a_tpu_has_another_name(monkeypatch):
    def version(name):
        if name != "tensorflow-tpu":
            raise PackageNotFoundError(name)
        return "2.20.0"

    monkeypatch.setattr(tensorflow_setup, "version", version)
    assert tensorflow_setup.package_version("tensorflow") == "2.20.0"
    with pytest.raises(PackageNotFoundError):
        tensorflow_setup.package_version("keras")
