"""TF Hub's models of texts: encoders that take token ids, and models that take the text itself.

Encoders of the BERT kind take `input_word_ids`, `input_mask` and `input_type_ids`; their vocabulary
is an asset of theirs, or of the preprocessing model that TF Hub puts beside them. Models that take
strings (nnlm, universal-sentence-encoder) are given them through ids too, one for each byte of
UTF-8: so texts are cut, batched, cached and served as all others are.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfft.backbones import blocks
from tfft.preprocess import tokenizer
from tfft.spec import Backbone, HeadStyle
from tfft.utils.errors import UserError
from tfft.utils.reading import library_errors, regular_file

# The names of an encoder's inputs, and tfft's for them.
_INPUTS = {
    "input_word_ids": "token_ids",
    "input_mask": "padding_mask",
    "input_type_ids": "segment_ids",
}
_OUTPUTS = {"pooled_output": "pooled", "sequence_output": "sequence"}
_VOCABULARY_LIMIT = 64 << 20  # bytes
_BLOCK = r"((?:^|[^/]*/)*?[^/]*(?:layer|block)s?_?\d+)(?=[_/])"


class Strings(keras.layers.Layer):
    """Ids of bytes -> the texts; what was cut within a letter loses its beginning."""

    def call(self, ids):
        """Int [B, T], 0 being padding and 1 + n the byte n -> strings [B]."""
        table = tf.constant([b"", *(bytes([n]) for n in range(256))])
        joined = tf.strings.reduce_join(tf.gather(table, tf.cast(ids, tf.int32)), axis=-1)
        return tf.strings.unicode_transcode(joined, "UTF-8", "UTF-8", errors="ignore")

    def compute_output_spec(self, ids):
        """[B], strings."""
        return keras.KerasTensor((ids.shape[0],), dtype="string")


def reads(saved: Any) -> str:
    """What a SavedModel's call takes: `ids`, `strings` or `pictures`."""
    for function in getattr(saved.__call__, "concrete_functions", ()):
        arguments, _ = function.structured_input_signature
        given = arguments[0] if arguments else None
        if isinstance(given, Mapping):
            return "ids" if "input_word_ids" in given else "pictures"
        if isinstance(given, tf.TypeSpec) and given.dtype == tf.string:
            return "strings"
    return "pictures"


def build(layer: keras.layers.Layer, kind: str, description: Mapping[str, Any]) -> Backbone:
    """The backbone of texts around a `hub.HubLayer`.

    Args:
        kind: `ids` or `strings`.
        description: of `hub.load`, with the tokenizer's description.

    Raises:
        UserError: it gives neither a vector for each text nor for each token.
    """
    where = f"model.backbone: hub:{description['handle']}"
    inputs = {name: keras.Input([None], dtype="int32", name=name) for name in _INPUTS.values()}
    if kind == "ids":
        given: Any = {theirs: inputs[ours] for theirs, ours in _INPUTS.items()}
    else:
        given = Strings(name="strings", dtype="float32")(inputs["token_ids"])
    with library_errors(f"{where}: does not take texts as it says"):
        found = layer(given)
    features = _features(found)
    if not features:
        raise UserError(f"{where}: gives neither a vector for each text nor for each token")
    paths = [variable.path for variable in layer.weights]
    # Inputs that nothing reads are inputs all the same: a batch of texts has all three.
    return Backbone(
        model=keras.Model(inputs, features, name="encoder"),
        stages=blocks.stages(paths, _BLOCK, "embeddings", "pooler"),
        features={name: int(t.shape[-1]) for name, t in features.items()},
        head_style=HeadStyle("pooled" if "pooled" in features else "first"),
        fingerprint="",
        description=dict(description),
        max_length=_positions(layer) if kind == "ids" else None,
        tokenizer=description["tokenizer"],
    )


def vocabulary(folder: Path, kind: str, other: Path | None, where: str) -> str:
    """The tokenizer's description: of single bytes, or of the vocabulary in a SavedModel's assets.

    Args:
        other: a preprocessing model, whose vocabulary counts.

    Raises:
        UserError: there is none.
    """
    if kind == "strings":
        return tokenizer.of_bytes()
    files = sorted(((other or folder) / "assets").glob("*vocab*.txt"))
    if not files:
        raise UserError(
            f"{where}: its assets hold no vocabulary; model.tokenizer: names the preprocessing "
            "model that TF Hub puts beside it"
        )
    try:
        text = regular_file(files[0], _VOCABULARY_LIMIT).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{files[0]}: not UTF-8 text") from None
    tokens = text.splitlines()
    return tokenizer.of_vocabulary(tokens, str(files[0]))


def _features(found: Any) -> dict[str, keras.KerasTensor]:
    if isinstance(found, Mapping):
        named = {ours: _features(found.get(theirs)).get(ours) for theirs, ours in _OUTPUTS.items()}
        named = {name: value for name, value in named.items() if value is not None}
        return named or _features(found.get("default"))
    if not isinstance(found, keras.KerasTensor) or found.shape[-1:] in ((), (None,)):
        return {}
    return {2: {"pooled": found}, 3: {"sequence": found}}.get(len(found.shape), {})


def _positions(layer: keras.layers.Layer) -> int | None:
    """The rows of the table of positions, where it is called so."""
    tables = [v for v in layer.weights if "position_embedding" in v.path and len(v.shape) == 2]
    return int(tables[0].shape[0]) if tables else None
