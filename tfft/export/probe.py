"""Runs a SavedModel as a server would: with TensorFlow and tensorflow-text, nothing else.

A script, run by path in a fresh process (`python -I probe.py FOLDER`): FOLDER/model is loaded,
FOLDER/raw.json and FOLDER/request.npz are what is asked, FOLDER/response.npz the answers.
"""

import base64
import json
import sys
import time

SIZES = (1, 2, 4, 8, 16, 32, 64)  # of the batches that are timed
LONG = 2.0  # seconds for a size after which no larger one is timed
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
    """A signature's probabilities, asked in batches of so many rows."""
    import numpy as np
    import tensorflow as tf

    rows, parts = len(next(iter(columns.values()))), []
    for start in range(0, rows, size):
        chunk = {k: tf.constant(v[start : start + size]) for k, v in columns.items()}
        out = {name: value.numpy() for name, value in serve(**chunk).items()}
        scores = out["scores"] if "scores" in out else out["probabilities"]
        names = out["classes"] if "classes" in out else out["label"]
        if scores.dtype != np.float32 or names.dtype != object:
            raise TypeError(f"scores must be float32, labels strings: {out}")
        parts.append(scores)
    return np.concatenate(parts)


def examples(columns):
    """Rows of raw columns as serialized tf.Examples."""
    import tensorflow as tf

    made = []
    for values in zip(*columns.values(), strict=True):
        feature = {
            name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
            for name, value in zip(columns, values, strict=True)
        }
        example = tf.train.Example(features=tf.train.Features(feature=feature))
        made.append(example.SerializeToString())
    return made


def main(folder):
    """Ask every signature with all rows, the raw one in batches of 1 and 3 too."""
    sys.meta_path.insert(0, _Blocker())
    import numpy as np
    import tensorflow as tf
    import tensorflow_text  # noqa: F401 -- registers its ops, which TF Serving links

    # TensorFlow imports keras by itself; from here on it is gone.
    for name in [n for n in sys.modules if n.split(".")[0] == "keras"]:
        sys.modules[name] = None
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

    found = {}
    for size in SIZES:
        batch = {k: tf.constant([v[at % len(v)] for at in range(size)]) for k, v in raw.items()}
        seconds = []
        for _ in range(3):  # the first also does what is done once
            began = time.perf_counter()
            serve(**batch)
            seconds.append(time.perf_counter() - began)
        found[size] = size / min(seconds[1:])
        if sum(seconds) > LONG:
            break
    return found


if __name__ == "__main__":
    main(sys.argv[1])
