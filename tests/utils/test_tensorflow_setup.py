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
    monkeypatch.delenv(tensorflow_setup.ONEDNN, raising=False)
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


def test_tensorflow_follows_the_import_of_tfft():
    """TensorFlow itself says whether its oneDNN kernels are on."""
    if "avx2" not in tensorflow_setup.cpu_flags():
        pytest.skip("the CPU has no AVX2")
    script = (
        "import tfft, tensorflow\n"
        "from tensorflow.python.util import _pywrap_util_port as port\n"
        "print(port.IsMklEnabled())"
    )
    environment = {k: v for k, v in os.environ.items() if k != tensorflow_setup.ONEDNN}
    for value, expected in ((None, "True"), ("0", "False")):
        variables = (
            environment if value is None else {**environment, tensorflow_setup.ONEDNN: value}
        )
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


def test_an_import_by_tfft_is_silent():
    """The user cannot act on what TensorFlow's libraries write when they are imported."""
    script = "import tfft, sys; tfft.train; assert 'tensorflow_text' in sys.modules"
    variables = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_tensorflow_of_a_tpu_has_another_name(monkeypatch):
    def version(name):
        if name != "tensorflow-tpu":
            raise PackageNotFoundError(name)
        return "2.20.0"

    monkeypatch.setattr(tensorflow_setup, "version", version)
    assert tensorflow_setup.package_version("tensorflow") == "2.20.0"
    with pytest.raises(PackageNotFoundError):
        tensorflow_setup.package_version("keras")
