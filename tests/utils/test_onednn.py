"""oneDNN is turned on before TensorFlow is imported, where it is faster and the user is silent."""

import os
import subprocess
import sys

import pytest

from tfft.utils import onednn

AVX2, VNNI = "flags\t\t: fpu sse avx2 fma\n", "flags\t\t: avx2 avx512_vnni\n"


@pytest.fixture
def cpu(monkeypatch, tmp_path):
    """A function that sets the content of /proc/cpuinfo; the variable is unset."""
    monkeypatch.setattr(onednn, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.delenv(onednn.VARIABLE, raising=False)
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
        monkeypatch.setenv(onednn.VARIABLE, user)
    onednn.enable()
    assert os.environ.get(onednn.VARIABLE) == expected


def test_after_tensorflow_is_imported_nothing_changes(cpu):
    cpu(AVX2)
    assert "tensorflow" in sys.modules
    onednn.enable()
    assert onednn.VARIABLE not in os.environ


def test_status_gives_the_reason(cpu, monkeypatch):
    cpu(AVX2)
    assert onednn.status() == "off (TensorFlow's default for this CPU)"
    cpu(VNNI)
    assert onednn.status() == "on (TensorFlow's default for this CPU)"
    for value, state in (("0", "off"), ("1", "on"), ("True", "on")):
        monkeypatch.setenv(onednn.VARIABLE, value)
        assert onednn.status() == f"{state} ({onednn.VARIABLE}={value})"


def test_no_cpuinfo_changes_nothing(cpu):
    onednn.enable()
    assert onednn.cpu_flags() == () and onednn.VARIABLE not in os.environ


def test_tensorflow_follows_the_import_of_tfft():
    """TensorFlow itself says whether its oneDNN kernels are on."""
    if "avx2" not in onednn.cpu_flags():
        pytest.skip("the CPU has no AVX2")
    script = (
        "import tfft, tensorflow\n"
        "from tensorflow.python.util import _pywrap_util_port as port\n"
        "print(port.IsMklEnabled())"
    )
    environment = {k: v for k, v in os.environ.items() if k != onednn.VARIABLE}
    for value, expected in ((None, "True"), ("0", "False")):
        variables = environment if value is None else {**environment, onednn.VARIABLE: value}
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected
