"""Runs a SavedModel as a server would: with TensorFlow and tensorflow-text, nothing else.

A script, run by path in a fresh process (`python -I probe.py FOLDER`): FOLDER/model is loaded,
FOLDER/raw.json and FOLDER/request.npz are what is asked, FOLDER/response.npz the answers.
"""

import base64
import json
import sys

BLOCKED = ("tfft", "transformers", "tokenizers", "keras_hub", "tf_keras", "torch")


class _Blocker:
    """Refuses the packages that a server does not have."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is not there when serving", name=name)


def value_of(value):
    """A raw value as it was before it was put in JSON."""
    return base64.b64decode(value["b64"]) if isinstance(value, dict) else value


def main(folder):
    """Answer in batches of 1, 3 and all, raw; and all prepared."""
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
    serve = model.signatures["serving_default"]
    rows = len(next(iter(raw.values())))

    def answer(size):
        parts = []
        for start in range(0, rows, size):
            chunk = {k: tf.constant(v[start : start + size]) for k, v in raw.items()}
            out = serve(**chunk)
            if out["probabilities"].dtype != tf.float32 or out["label"].dtype != tf.string:
                raise TypeError(f"probabilities must be float32, label string: {out}")
            parts.append(out["probabilities"].numpy())
        return np.concatenate(parts)

    prepared = dict(np.load(f"{folder}/request.npz"))
    answers = {f"batch_{size}": answer(size) for size in (1, 3, rows)}
    (second,) = (name for name in model.signatures if name != "serving_default")
    found = model.signatures[second](**{k: tf.constant(v) for k, v in prepared.items()})
    np.savez(f"{folder}/response.npz", prepared=found["probabilities"].numpy(), **answers)


if __name__ == "__main__":
    main(sys.argv[1])
