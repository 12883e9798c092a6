"""Runs a SavedModel as a server would: with TensorFlow and tensorflow-text, nothing else.

A script, run by path in a process of its own (`verifier`): `python -I verify.py --parent ID` imports
TensorFlow and reads names of folders from standard input, a line each. For each it forks a process,
in which nothing was loaded before, and answers with that one's exit code; both are killed when the
process ID ends. FOLDER/model is loaded,
FOLDER/raw.json and FOLDER/request.npz are what is asked, FOLDER/response.npz the answers,
FOLDER/errors.txt what was written to standard error. `python -I verify.py FOLDER` does one, without
a fork.
"""

import base64
import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
import traceback

SIZES = (1, 2, 4, 8, 16, 32)  # of the batches that are timed: those of serving_config.SIZES
LONG = 2.0  # seconds for a size after which no larger one is timed
IDLE = 120.0  # seconds without a request after which it ends
PARENT_DIED = 1  # prctl's PR_SET_PDEATHSIG
BLOCKED = ("tfft", "transformers", "tokenizers", "keras_hub", "tf_keras", "torch")


class _Blocker:
    """Refuses the packages that a server does not have."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is not there when serving", name=name)


def value_of(value):
    """A raw value as bytes, as it was before it was put in JSON."""
    return base64.b64decode(value["b64"]) if isinstance(value, dict) else value.encode()


def answers(serve, columns, size):
    """A signature's probabilities, asked in batches of so many rows, none of which may be bad."""
    import numpy as np
    import tensorflow as tf

    rows, parts = len(next(iter(columns.values()))), []
    for start in range(0, rows, size):
        chunk = {k: tf.constant(v[start : start + size]) for k, v in columns.items()}
        out = {name: value.numpy() for name, value in serve(**chunk).items()}
        for status in out.get("status", ()):
            if status != b"ok":
                raise ValueError(f"a row was not answered: {status.decode()}")
        scores = out["scores"] if "scores" in out else out["probabilities"]
        names = out["classes"] if "classes" in out else out["label"]
        if scores.dtype != np.float32 or names.dtype != object:
            raise TypeError(f"scores must be float32, labels strings: {out}")
        parts.append(scores)
    return np.concatenate(parts)


def examples(columns):
    """Rows of raw columns as serialized tf.Examples."""
    import tensorflow as tf

    serialized = []
    for values in zip(*columns.values(), strict=True):
        feature = {
            name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
            for name, value in zip(columns, values, strict=True)
        }
        example = tf.train.Example(features=tf.train.Features(feature=feature))
        serialized.append(example.SerializeToString())
    return serialized


def prepare():
    """Import what a server has, and let nothing else be imported."""
    sys.meta_path.insert(0, _Blocker())
    import numpy  # noqa: F401
    import tensorflow  # noqa: F401
    import tensorflow_text  # noqa: F401 -- registers its ops, which TF Serving links

    # TensorFlow imports keras by itself; from here on it is gone.
    for name in [n for n in sys.modules if n.split(".")[0] == "keras"]:
        sys.modules[name] = None


def verify(folder):
    """Ask every signature with all rows, the raw one in batches of 1 and 3 too."""
    import numpy as np
    import tensorflow as tf

    model = tf.saved_model.load(f"{folder}/model")
    with open(f"{folder}/raw.json", encoding="utf-8") as file:
        raw = {name: [value_of(v) for v in values] for name, values in json.load(file).items()}
    serialized = examples(raw)
    asked = {
        "serving_default": raw,
        "tensors": dict(np.load(f"{folder}/request.npz")),
        "serialized": {"examples": serialized},
        "classify": {"inputs": serialized},
    }
    if set(asked) != set(model.signatures):
        raise KeyError(f"signatures {sorted(model.signatures)}, expected {sorted(asked)}")
    np.savez(
        f"{folder}/response.npz",
        **{
            f"{name}_{size}": answers(model.signatures[name], columns, size)
            for name, columns in asked.items()
            for size in ((1, 3) if columns is raw else ()) + (len(serialized),)
        },
    )
    with open(f"{folder}/rates.json", "w", encoding="utf-8") as file:
        json.dump(rates(model.signatures["serving_default"], raw), file)


def rates(serve, raw):
    """Rows a second by batch size, the better of two; until a batch takes too long."""
    import tensorflow as tf

    by_size = {}
    for size in SIZES:
        batch = {k: tf.constant([v[at % len(v)] for at in range(size)]) for k, v in raw.items()}
        seconds = []
        for _ in range(3):  # the first also does what is done once
            began = time.perf_counter()
            serve(**batch)
            seconds.append(time.perf_counter() - began)
        by_size[size] = size / min(seconds[1:])
        if sum(seconds) > LONG:
            break
    return by_size


def end_with_parent(parent):
    """Have this process killed when the one that started it ends, however that ends."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PARENT_DIED, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def serve(parent):
    """Verify the folder of each line that comes in, in a process of its own."""
    end_with_parent(parent)
    answers_to = os.fdopen(os.dup(1), "w")  # what libraries print goes elsewhere
    os.dup2(2, 1)
    prepare()
    while select.select([sys.stdin], [], [], IDLE)[0]:
        line = sys.stdin.readline()
        if not line:
            return
        own = os.getpid()
        child = os.fork()  # safe: importing starts no thread
        if child == 0:
            end_with_parent(own)
            _become(json.loads(line))
        _, status = os.waitpid(child, 0)
        answers_to.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers_to.flush()


def _become(folder):
    """In the child: verify and exit."""
    code = 1
    try:
        for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):  # of the one that forks
            os.environ.pop(name, None)
        errors = os.open(f"{folder}/errors.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(errors, 1)
        os.dup2(errors, 2)
        verify(folder)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "--parent":
        serve(int(sys.argv[2]))
    else:
        prepare()
        verify(sys.argv[1])
