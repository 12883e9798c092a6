"""TF Hub text models: encoders that take token ids, and models that take strings.

BERT encoders take `input_word_ids`, `input_mask` and `input_type_ids`. Their vocabulary is an asset
of the SavedModel or of its TF Hub preprocessing model. Models that take strings (nnlm,
universal-sentence-encoder) also get ids here, one for each byte of UTF-8, so texts are truncated,
batched, cached and served by the same code as for all other backbones.
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

# TF Hub's names of an encoder's inputs -> tfft's names.
_INPUTS = {
    "input_word_ids": "token_ids",
    "input_mask": "padding_mask",
    "input_type_ids": "segment_ids",
}
_OUTPUTS = {"pooled_output": "pooled", "sequence_output": "sequence"}
_VOCABULARY_LIMIT = 64 << 20  # bytes
# Captures the path up to the first numbered layer or block.
_BLOCK = r"((?:^|[^/]*/)*?[^/]*(?:layer|block)s?_?\d+)(?=[_/])"


class Strings(keras.layers.Layer):
    """Layer that turns byte ids back into strings.

    Truncation may split a character; its incomplete bytes are dropped.
    """

    def call(self, ids):
        """Decode ids, int [B, T] -> strings [B]. Id 0 is padding; id 1 + n is byte n."""
        table = tf.constant([b"", *(bytes([n]) for n in range(256))])  # [257]
        joined = tf.strings.reduce_join(tf.gather(table, tf.cast(ids, tf.int32)), axis=-1)
        return tf.strings.unicode_transcode(joined, "UTF-8", "UTF-8", errors="ignore")

    def compute_output_spec(self, ids):
        """Return the output's shape and dtype: strings, [B]."""
        return keras.KerasTensor((ids.shape[0],), dtype="string")


def input_kind(saved: Any) -> str:
    """Return what a SavedModel's call takes: `ids`, `strings` or `images`."""
    for function in getattr(saved.__call__, "concrete_functions", ()):
        arguments, _ = function.structured_input_signature
        argument = arguments[0] if arguments else None
        if isinstance(argument, Mapping):
            return "ids" if "input_word_ids" in argument else "images"
        if isinstance(argument, tf.TypeSpec) and argument.dtype == tf.string:
            return "strings"
    return "images"


def build(layer: keras.layers.Layer, kind: str, description: Mapping[str, Any]) -> Backbone:
    """Build a text backbone around a `hub.HubLayer`.

    Args:
        layer: the SavedModel's layer.
        kind: `ids` or `strings`, see `input_kind`.
        description: the description from `hub.load`, with that of the tokenizer.

    Raises:
        UserError: The SavedModel returns neither a vector per text nor one per token.
    """
    where = f"model.backbone: hub:{description['handle']}"
    inputs = {name: keras.Input([None], dtype="int32", name=name) for name in _INPUTS.values()}
    if kind == "ids":
        encoder_inputs: Any = {hub_name: inputs[name] for hub_name, name in _INPUTS.items()}
    else:
        encoder_inputs = Strings(name="strings", dtype="float32")(inputs["token_ids"])
    with library_errors(f"{where}: its call fails on the text inputs in its signature"):
        outputs = layer(encoder_inputs)
    features = _features(outputs)
    if not features:
        raise UserError(f"{where}: must return a vector per text or per token")
    paths = [variable.path for variable in layer.weights]
    # Keep inputs that the SavedModel does not read: every batch of texts has all three.
    return Backbone(
        model=keras.Model(inputs, features, name="encoder"),
        stages=blocks.stages_by_block(paths, _BLOCK, "embeddings", "pooler"),
        head_style=HeadStyle("pooled" if "pooled" in features else "first"),
        fingerprint="",
        description=dict(description),
        max_length=_positions(layer) if kind == "ids" else None,
        tokenizer=description["tokenizer"],
    )


def vocabulary(folder: Path, kind: str, preprocessor: Path | None, where: str) -> str:
    """Return the tokenizer's description: bytes, or the WordPiece vocabulary in the assets.

    Args:
        folder: the SavedModel.
        kind: `ids` or `strings`, see `input_kind`.
        preprocessor: the folder of a preprocessing model, whose vocabulary takes precedence.
        where: prefix of error messages.

    Raises:
        UserError: The assets hold no vocabulary.
    """
    if kind == "strings":
        return tokenizer.byte_tokenizer_json()
    files = sorted(((preprocessor or folder) / "assets").glob("*vocab*.txt"))
    if not files:
        raise UserError(
            f"{where}: its assets hold no vocabulary; set model.tokenizer to the preprocessing "
            "model that TF Hub lists for it"
        )
    try:
        text = regular_file(files[0], _VOCABULARY_LIMIT).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{files[0]}: not UTF-8 text") from None
    tokens = text.splitlines()
    return tokenizer.wordpiece_tokenizer_json(tokens, str(files[0]))


def _features(outputs: Any) -> dict[str, keras.KerasTensor]:
    if isinstance(outputs, Mapping):
        features = {
            name: _features(outputs.get(hub_name)).get(name) for hub_name, name in _OUTPUTS.items()
        }
        features = {name: value for name, value in features.items() if value is not None}
        return features or _features(outputs.get("default"))
    if not isinstance(outputs, keras.KerasTensor) or outputs.shape[-1:] in ((), (None,)):
        return {}
    # [B, D] or [B, T, D]
    return {2: {"pooled": outputs}, 3: {"sequence": outputs}}.get(len(outputs.shape), {})


def _positions(layer: keras.layers.Layer) -> int | None:
    """Return the number of rows of the position table, or None if no variable has its name."""
    tables = [v for v in layer.weights if "position_embedding" in v.path and len(v.shape) == 2]
    return int(tables[0].shape[0]) if tables else None
