"""Say what is installed and whether it works; exit 2 if something is amiss."""

import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from tfft.cli import common
from tfft.utils.errors import UserError


def verb() -> None:
    """Check the packages against setup.cfg's bounds, then the stack itself."""
    print(f"python               {sys.version.split()[0]}")
    problems = [problem for line in requires("tfft") or [] if (problem := _check(line))]
    common.load_tensorflow()
    problems += _stack()
    free = shutil.disk_usage(os.path.expanduser("~")).free / 2**30
    print(f"disk (home)          {free:.0f} GiB free")
    if problems:
        raise UserError("\n".join(problems))
    print("all well")


def _check(line: str) -> str | None:
    requirement = Requirement(line)
    optional = requirement.marker is not None and "extra" in str(requirement.marker)
    try:
        have = version(requirement.name)
    except PackageNotFoundError:
        if not optional:
            return f"{requirement.name} is not installed: pip install '{requirement}'"
        return None
    fits = requirement.specifier.contains(have, prereleases=True)
    if not optional or not fits:
        print(
            f"{requirement.name:<20} {have}{'' if fits else '  (needs ' + str(requirement) + ')'}"
        )
    return None if fits or optional else f"{requirement.name} {have}: needs {requirement}"


def _stack() -> list[str]:
    """Devices, the Keras backend, an op of tensorflow-text."""
    import keras
    import tensorflow as tf
    import tensorflow_text as tf_text

    for device in tf.config.list_physical_devices():
        print(f"device               {device.name.removeprefix('/physical_device:')}")
    problems = []
    if keras.backend.backend() != "tensorflow":
        problems.append(
            f"the Keras backend is {keras.backend.backend()}: set KERAS_BACKEND=tensorflow"
        )
    if tf_text.normalize_utf8(tf.constant(["ﬁ"]), "NFKC").numpy()[0] != b"fi":
        problems.append("tensorflow-text does not work: install the version of tensorflow's")
    return problems


def main(argv: list[str] | None = None) -> None:
    """The binary."""
    common.main(verb, argv)


if __name__ == "__main__":
    main()
