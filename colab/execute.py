"""Execute the notebooks in this folder, in an empty folder, without network.

python colab/execute.py --small          # as in CI: small runs, nothing is written
python colab/execute.py [--only=1,4]     # full runs; the outputs are written into the notebooks
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
    # Trials end it, not time, which an old machine may spend on the first one.
    "4": {"ROWS": 80, "EPOCHS": 2, "TRIALS": 2, "MINUTES": 20, "SEEDS": 1},
    "5": {"ROWS": 160},
    "6": {"ROWS": 160},
    "7": {"ROWS": 60, "EPOCHS": 1},
}
CELL_TIMEOUT = 1500  # seconds per cell
# Log lines of TensorFlow on import.
NOISE = re.compile(
    r"^(WARNING: All log messages|(INFO|WARNING):tensorflow|[IWE]0000 |[\d: .-]+: [IWE] |"
    r"To enable the following)"
)


def main() -> None:
    """Execute the notebooks and print how long each took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", default=",".join(SMALL))
    parser.add_argument(
        "--set", action="append", default=[], help="NAME=VALUE of a parameter of the notebooks"
    )
    flags = parser.parse_args()
    changes = dict(item.split("=", 1) for item in flags.set)
    for path in sorted(HERE.glob("*.ipynb")):
        if path.name[0] not in flags.only.split(","):
            continue
        start = time.monotonic()
        notebook = execute(path, SMALL[path.name[0]] if flags.small else changes)
        print(f"{path.name:<32}{time.monotonic() - start:6.0f} s", flush=True)
        if not flags.small:
            nbformat.write(notebook, path)


def execute(path: Path, changes: dict[str, Any]) -> nbformat.NotebookNode:
    """Execute a notebook and return it with its outputs.

    Args:
        path: notebook.
        changes: values of its parameters.
    """
    notebook = nbformat.read(path, as_version=4)
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    source = parameters.source
    for name, value in changes.items():
        literal = value if isinstance(value, str) and value.startswith('"') else repr(value)
        parameters.source, count = re.subn(
            rf"(?m)^{name} = .*$", f"{name} = {literal}", parameters.source
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
        client = NotebookClient(
            notebook, timeout=CELL_TIMEOUT, resources={"metadata": {"path": folder}}
        )
        client.execute()
        parameters.source = source
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
            for output in cell.get("outputs", []):
                tidy(output, {folder: ".", sysconfig.get_paths()["purelib"]: "site-packages"})
    return notebook


def tidy(output: Any, replacements: dict[str, str]) -> None:
    """Remove local paths and TensorFlow's log noise from an output, in place."""
    texts = output if "text" in output else output.get("data", {})
    for key, value in texts.items():
        if not isinstance(value, str) or key.startswith("image/png"):
            continue
        for local_path, name in replacements.items():
            value = value.replace(local_path, name)
        if key == "text":
            value = "".join(line for line in value.splitlines(True) if not NOISE.match(line))
        texts[key] = value


if __name__ == "__main__":
    main()
