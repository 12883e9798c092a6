"""Executes the notebooks beside it, in an empty folder, without a network.

python colab/execute.py --small          # as CI does: little work, nothing is written
python colab/execute.py [--only=1,4]     # as they stand; their outputs are written into them
"""

import argparse
import os
import re
import sys
import sysconfig
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
SMALL: dict[str, dict[str, Any]] = {
    "1": {"ROWS": 160, "EPOCHS": 1},
    "2": {"WEIGHTS": "none", "EPOCHS": 1, "COUNT": 6},
    "3": {"ROWS": 160, "EPOCHS": 1},
    "4": {"ROWS": 80, "EPOCHS": 2, "MINUTES": 0.5, "SEEDS": 1},
    "5": {"ROWS": 160},
    "6": {"ROWS": 160},
}
LIMIT = 1500  # seconds for a cell
# What TensorFlow writes as it is loaded, which says nothing of the notebook.
NOISE = re.compile(
    r"^(WARNING: All log messages|(INFO|WARNING):tensorflow|[IWE]0000 |[\d: .-]+: [IWE] |"
    r"To enable the following)"
)


def main() -> None:
    """Execute, say how long each took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", default=",".join(SMALL))
    parser.add_argument("--set", action="append", default=[], help="NAME=VALUE, of parameters")
    flags = parser.parse_args()
    changes = dict(one.split("=", 1) for one in flags.set)
    for path in sorted(HERE.glob("*.ipynb")):
        if path.name[0] not in flags.only.split(","):
            continue
        began = time.monotonic()
        book = executed(path, SMALL[path.name[0]] if flags.small else changes)
        print(f"{path.name:<32}{time.monotonic() - began:6.0f} s", flush=True)
        if not flags.small:
            nbformat.write(book, path)


def executed(path: Path, changes: dict[str, Any]) -> nbformat.NotebookNode:
    """A notebook with its outputs; `changes` are values of its parameters."""
    book = nbformat.read(path, as_version=4)
    (parameters,) = [c for c in book.cells if "parameters" in c.metadata.get("tags", [])]
    given = parameters.source
    for name, value in changes.items():
        shown = value if isinstance(value, str) and value.startswith('"') else repr(value)
        parameters.source, count = re.subn(
            rf"(?m)^{name} = .*$", f"{name} = {shown}", parameters.source
        )
        if not count:
            sys.exit(f"{path.name}: has no parameter {name}")
    with TemporaryDirectory() as folder:
        (Path(folder) / "examples").symlink_to(HERE.parent / "examples")
        environment = {
            **{"TF_CPP_MIN_LOG_LEVEL": "3", "HF_HUB_OFFLINE": "1", "TFFT_CACHE": f"{folder}/cache"},
            **{"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "")},
        }
        os.environ.update(environment)
        client = NotebookClient(book, timeout=LIMIT, resources={"metadata": {"path": folder}})
        client.execute()
        parameters.source = given
        for cell in book.cells:
            cell.metadata.pop("execution", None)
            for output in cell.get("outputs", []):
                tidy(output, {folder: ".", sysconfig.get_paths()["purelib"]: "site-packages"})
    return book


def tidy(output: Any, places: dict[str, str]) -> None:
    """Without this machine's folders and TensorFlow's noise; in place."""
    texts = output if "text" in output else output.get("data", {})
    for key, value in texts.items():
        if not isinstance(value, str) or key.startswith("image/png"):
            continue
        for place, name in places.items():
            value = value.replace(place, name)
        if key == "text":
            value = "".join(line for line in value.splitlines(True) if not NOISE.match(line))
        texts[key] = value


if __name__ == "__main__":
    main()
