"""Report what is installed and whether it works; exit with 2 if there is a problem.

Example:
    tfft doctor
"""

import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires

from packaging.requirements import Requirement

from tfft.cli import common
from tfft.utils.errors import UserError
from tfft.utils.tensorflow_setup import load_tensorflow, onednn_status, package_version


def run() -> None:
    """Check the packages against setup.cfg's bounds, then TensorFlow, Keras and tensorflow-text."""
    print(f"python               {sys.version.split()[0]}")
    problems = [
        problem
        for requirement_line in requires("tfft") or []
        if (problem := _check(requirement_line))
    ]
    load_tensorflow()
    problems += _stack()
    free = shutil.disk_usage(os.path.expanduser("~")).free / 2**30
    print(f"disk (home)          {free:.0f} GiB free")
    if problems:
        raise UserError("\n".join(problems))
    print("all well")


def _check(requirement_line: str) -> str | None:
    """Print the installed version of a requirement; return the problem, or None."""
    requirement = Requirement(requirement_line)
    optional = requirement.marker is not None and "extra" in str(requirement.marker)
    try:
        installed = package_version(requirement.name)
    except PackageNotFoundError:
        if not optional:
            return f"{requirement.name} is not installed: pip install '{requirement}'"
        return None
    satisfied = requirement.specifier.contains(installed, prereleases=True)
    if not optional or not satisfied:
        print(
            f"{requirement.name:<20} {installed}"
            f"{'' if satisfied else '  (needs ' + str(requirement) + ')'}"
        )
    return None if satisfied or optional else f"{requirement.name} {installed}: needs {requirement}"


def _stack() -> list[str]:
    """Print the devices; return the problems of the Keras backend and tensorflow-text."""
    import keras
    import tensorflow as tf
    import tensorflow_text as tf_text

    print(f"{'oneDNN':<20} {onednn_status()}")
    for device in tf.config.list_physical_devices():
        print(f"device               {device.name.removeprefix('/physical_device:')}")
    problems = []
    if keras.backend.backend() != "tensorflow":
        problems.append(
            f"the Keras backend is {keras.backend.backend()}: set KERAS_BACKEND=tensorflow"
        )
    # U+FB01, the ligature fi: NFKC takes it apart, by an op in tensorflow-text's own library.
    if tf_text.normalize_utf8(tf.constant(["ﬁ"]), "NFKC").numpy()[0] != b"fi":
        problems.append("tensorflow-text does not work: install the version of tensorflow's")
    return problems


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run the command."""
    common.main(run, argv)


if __name__ == "__main__":
    main()
