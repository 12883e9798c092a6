"""A complete tokenizer as one TensorFlow module: from raw texts to a model's inputs."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
from tokenizers import Tokenizer

from tfft.preprocess.graph import codepoints, normalize, pack, ragged
from tfft.preprocess.graph.bpe import ByteLevelBPE
from tfft.preprocess.graph.unigram import Unigram
from tfft.preprocess.graph.wordpiece import WordPiece
from tfft.utils.errors import UserError

MODELS = {"WordPiece": WordPiece, "BPE": ByteLevelBPE, "Unigram": Unigram}


class GraphTokenizer(tf.Module):
    """A tokenizer description as TensorFlow ops; it can be saved within a SavedModel.

    Args:
        spec: the description (`tokenizer.json`).
        max_length: the most tokens of a row, special ones included.
        pad_id: fills up shorter rows.

    Raises:
        UserError: a part of the description has no counterpart in the graph.
    """

    def __init__(self, spec: str, max_length: int, pad_id: int):
        super().__init__()
        description = _parse_as_host(spec)
        self._max_length, self._pad_id = max_length, pad_id
        self._normalize = normalize.Normalizer(description["normalizer"])
        self._added = _AddedTokens(description["added_tokens"])
        self._pieces = _build_model(description)
        self._single, self._pair = pack.templates(description["post_processor"])

    def __call__(self, text: tf.Tensor, text_pair: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """Tokenise strings [B]: `{token_ids, padding_mask, segment_ids}`, int32 [B, T]."""
        a = self._ids(text)
        b = None if text_pair is None else self._ids(text_pair)
        template = self._single if b is None else self._pair
        return pack.pack(a, b, template, self._max_length, self._pad_id)

    def _ids(self, text: tf.Tensor) -> tf.RaggedTensor:
        # Clients may send any bytes: replace what is not UTF-8 by U+FFFD instead of raising.
        text = tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace")
        # Some string ops end a text at U+0000.
        text = tf.strings.regex_replace(text, r"\x{0}", codepoints.NUL)
        if not self._added:
            return self._pieces(self._normalize(text))
        parts = self._added.split(text)
        token = self._added.lookup(parts.flat_values)
        is_text = token < 0
        # An added token is an empty text here, which has no ids.
        plain = self._pieces(self._normalize(tf.where(is_text, parts.flat_values, "")))
        added = tf.RaggedTensor.from_row_lengths(
            tf.boolean_mask(token, ~is_text), tf.cast(~is_text, tf.int64), validate=False
        )
        # For each part one of the two is empty.
        ids = tf.concat([plain, added], axis=1)
        return ragged.merge_inner_axes(parts.with_flat_values(ids))


def _parse_as_host(spec: str) -> dict[str, Any]:
    """Parse a description with the numbers that the host computes with.

    The host's JSON reader is off by one in the last place for about one decimal in fifty
    (serde_json without `float_roundtrip`), which decides between two paths of equal score.
    """
    return json.loads(Tokenizer.from_str(spec).to_str())


class _AddedTokens(tf.Module):
    """Tokens such as [SEP] that are split from the raw text before any other step."""

    def __init__(self, tokens: Sequence[Mapping[str, Any]]):
        super().__init__()
        for token in tokens:
            if token["single_word"]:
                raise UserError(
                    f"tokenizer: the added token {token['content']!r} with single_word has no "
                    "in-graph form"
                )
            # The host matches normalized tokens in the normalized text, this class in the raw text.
            # Both agree if lowercasing does not change the token.
            if token["normalized"] and token["content"] != token["content"].lower():
                raise UserError(
                    f"tokenizer: the normalized added token {token['content']!r} has no "
                    "in-graph form"
                )
        self._tokens = list(tokens)
        if not tokens:
            return
        # The longest first, so that it wins over its own prefix, as on the host.
        ordered = sorted(tokens, key=lambda t: -len(t["content"]))
        space = codepoints.whitespace()
        self._pattern = "|".join(
            (f"{space}*" if t["lstrip"] else "")
            + re.escape(t["content"])
            + (f"{space}*" if t["rstrip"] else "")
            for t in ordered
        )
        self._strip = f"^{space}+|{space}+$"
        self._table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant([t["content"] for t in ordered]),
                tf.constant([t["id"] for t in ordered], tf.int32),
            ),
            default_value=-1,
        )
        self._may_strip = any(t["lstrip"] or t["rstrip"] for t in tokens)

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def split(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Split texts [N] at the added tokens, which become parts: ragged [N, parts]."""
        return ragged.regex_split(text, self._pattern, self._pattern)

    def lookup(self, parts: tf.Tensor) -> tf.Tensor:
        """Return the id of each part that is an added token, else -1."""
        ids = self._table.lookup(parts)
        if not self._may_strip:
            return ids
        # With lstrip or rstrip, a part includes the whitespace next to its token.
        stripped = tf.strings.regex_replace(parts, self._strip, "")
        return tf.where(ids >= 0, ids, self._table.lookup(stripped))


def _build_model(description: Mapping[str, Any]) -> tf.Module:
    """Build the model of a description, including its pre-tokenizer."""
    model = description["model"]
    kind = model["type"]
    if kind not in MODELS:
        raise UserError(f"tokenizer: the model {kind} has no in-graph form")
    return MODELS[kind](model, description["pre_tokenizer"])
