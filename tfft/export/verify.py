"""Run a SavedModel as a server would, with only TensorFlow and tensorflow-text installed.

This script is run by its path in a separate process (`verify_process`):

    python -I verify.py FOLDER        verify one export
    python -I verify.py --parent ID   verify the folder on each line of standard input

With --parent it imports TensorFlow once and forks a process for each folder, so that every export
is loaded in a clean process. It answers each line with the exit code of the fork. The server and
its forks exit when process ID exits.

    FOLDER/model                      the SavedModel
    FOLDER/raw.json, request.npz      the requests: raw rows and prepared inputs
    FOLDER/response.npz, rates.json   every output of every signature, and rows per second
    FOLDER/errors.txt                 standard error of the fork
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

SIZES = (1, 2, 4, 8, 16, 32)  # batch sizes to time; equal to serving_config.SIZES (tfft is blocked)
MAX_SECONDS = 2.0  # time for one batch size after which no larger one is timed
IDLE_SECONDS = 120.0  # exit after this time without a request
PR_SET_PDEATHSIG = 1  # linux/prctl.h: the signal to receive when the parent ends
BLOCKED = ("tfft", "transformers", "tokenizers", "keras_hub", "tf_keras", "torch")


class _ImportBlocker:
    """An import hook that rejects the packages that a server does not have."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is not available when serving", name=name)


def decode_value(value):
    """Return the bytes of a raw value from JSON: a string, or {"b64": ...}."""
    return base64.b64decode(value["b64"]) if isinstance(value, dict) else value.encode()


def run_signature(signature, columns, batch_size):
    """Return a signature's outputs without `status`, name -> [N, ...], computed in batches.

    Raises:
        ValueError: an image was not decoded.
    """
    import numpy as np
    import tensorflow as tf

    num_rows, batches = len(next(iter(columns.values()))), []
    for start in range(0, num_rows, batch_size):
        batch = {k: tf.constant(v[start : start + batch_size]) for k, v in columns.items()}
        outputs = {name: value.numpy() for name, value in signature(**batch).items()}
        for status in outputs.pop("status", ()):
            if status != b"ok":
                raise ValueError(f"a row failed: {status.decode()}")
        batches.append(outputs)
    return {name: np.concatenate([outputs[name] for outputs in batches]) for name in batches[0]}


def plain(array):
    """Return an array that numpy saves without pickle: strings as digests, uint8 [..., 16]."""
    import hashlib

    import numpy as np

    if array.dtype != object:
        return array
    digests = [hashlib.blake2b(value, digest_size=16).digest() for value in array.ravel()]
    return np.frombuffer(b"".join(digests), np.uint8).reshape([*array.shape, 16])


def serialize_examples(columns):
    """Return raw columns, name -> bytes of each row, as serialized tf.Examples."""
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


def import_packages():
    """Import the packages of a server, and block all others."""
    sys.meta_path.insert(0, _ImportBlocker())
    import numpy  # noqa: F401
    import tensorflow  # noqa: F401
    import tensorflow_text  # noqa: F401 -- registers its ops, which TF Serving links

    # TensorFlow imports Keras itself; a SavedModel must not need it.
    for name in [n for n in sys.modules if n.split(".")[0] == "keras"]:
        sys.modules[name] = None


def verify(folder):
    """Run every signature on all rows, and `serving_default` also in batches of 1 and 3."""
    import numpy as np
    import tensorflow as tf

    model = tf.saved_model.load(f"{folder}/model")
    with open(f"{folder}/raw.json", encoding="utf-8") as file:
        raw = {name: [decode_value(v) for v in values] for name, values in json.load(file).items()}
    serialized = serialize_examples(raw)
    requests = {
        "serving_default": raw,
        "tensors": dict(np.load(f"{folder}/request.npz")),
        "serialized": {"examples": serialized},
    }
    # The others, such as `classify`, take tf.Examples as `inputs`.
    requests = {name: requests.get(name, {"inputs": serialized}) for name in model.signatures}
    np.savez(
        f"{folder}/response.npz",
        **{
            f"{name}/{size}/{output}": plain(value)
            for name, columns in requests.items()
            for size in ((1, 3) if columns is raw else ()) + (len(serialized),)
            for output, value in run_signature(model.signatures[name], columns, size).items()
        },
    )
    with open(f"{folder}/rates.json", "w", encoding="utf-8") as file:
        json.dump(measure_rates(model.signatures["serving_default"], raw), file)


def measure_rates(signature, raw):
    """Return batch size -> rows per second, the faster of two runs.

    Larger sizes are skipped once one took longer than `MAX_SECONDS`.
    """
    import tensorflow as tf

    rates = {}
    for size in SIZES:
        batch = {k: tf.constant([v[i % len(v)] for i in range(size)]) for k, v in raw.items()}
        seconds = []
        for _ in range(3):  # the first includes tracing and initialization
            start = time.perf_counter()
            signature(**batch)
            seconds.append(time.perf_counter() - start)
        rates[size] = size / min(seconds[1:])
        if sum(seconds) > MAX_SECONDS:
            break
    return rates


def exit_with_parent(parent_id):
    """Have the kernel kill this process when its parent ends, even by SIGKILL."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_id:  # the parent ended before prctl took effect
        os._exit(1)


def serve(parent_id):
    """Verify the folder on each line of standard input in a forked process."""
    exit_with_parent(parent_id)
    replies = os.fdopen(os.dup(1), "w")  # stdout is the protocol; libraries print to stderr
    os.dup2(2, 1)
    import_packages()
    while select.select([sys.stdin], [], [], IDLE_SECONDS)[0]:
        line = sys.stdin.readline()
        if not line:
            return
        server_id = os.getpid()
        fork_id = os.fork()  # safe: the imports above start no threads
        if fork_id == 0:
            exit_with_parent(server_id)
            _run_fork(json.loads(line))
        _, status = os.waitpid(fork_id, 0)
        replies.write(f"{os.waitstatus_to_exitcode(status)}\n")
        replies.flush()


def _run_fork(folder):
    """Verify a folder in the forked process, and exit with 0 or 1."""
    code = 1
    try:
        for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):  # set to 1 for the forking process
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
        import_packages()
        verify(sys.argv[1])
