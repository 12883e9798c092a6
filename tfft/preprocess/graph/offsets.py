"""Offsets of tokens into raw texts: trimmed as on the host, in bytes or in characters."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfft.preprocess.graph import codepoints, ragged
from tfft.preprocess.tokenizer import byte_alphabet

# The letter of a space in a byte-level vocabulary.
_SPACE = byte_alphabet()[ord(" ")]


class Trimmer:
    """The byte-level post-processor, which cuts the spaces of a token off its offsets.

    Args:
        post_processor: of a tokenizer description.
        model: the `model` of the description.
    """

    def __init__(self, post_processor: Mapping[str, Any] | None, model: Mapping[str, Any]):
        self._adds_space = _trimming_steps(post_processor)
        vocabulary = model["vocab"]
        if not isinstance(vocabulary, Mapping):  # pairs of piece and score
            vocabulary = {piece: i for i, (piece, _) in enumerate(vocabulary)}
        self._leading = np.zeros(max(vocabulary.values(), default=0) + 1, np.int32)
        self._trailing = np.zeros_like(self._leading)
        for token, i in vocabulary.items() if self else ():
            self._leading[i] = len(token) - len(token.lstrip(_SPACE))
            self._trailing[i] = len(token) - len(token.rstrip(_SPACE))

    def __bool__(self) -> bool:
        return bool(self._adds_space)

    def spaces(self, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the spaces that begin and end the tokens of the model, both int32 [K]."""
        return tf.gather(self._leading, ids), tf.gather(self._trailing, ids)

    def spaces_of_strings(self, tokens: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the whitespace that begins and ends the strings of added tokens, int32 [K]."""
        length = tf.strings.length(tokens, unit="UTF8_CHAR")
        return tuple(
            length - tf.strings.length(tf.strings.regex_replace(tokens, p, ""), unit="UTF8_CHAR")
            for p in (f"^{codepoints.whitespace()}+", f"{codepoints.whitespace()}+$")
        )

    def __call__(
        self,
        starts: tf.Tensor,
        ends: tf.Tensor,
        spaces: tuple[tf.Tensor, tf.Tensor],
        first: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the trimmed offsets.

        Args:
            starts: offsets of tokens in characters, int32 [K].
            ends: the same.
            spaces: at the beginning and the end of each token, int32 [K].
            first: whether a token is the first of its text, bool [K].
        """
        for adds_space in self._adds_space:
            leading, trailing = spaces
            if adds_space:
                # One space of a token at the beginning may be one that was added.
                leading -= tf.cast((first | (starts == 0)) & (leading > 0), tf.int32)
            starts = tf.minimum(starts + leading, ends)
            ends = tf.where(ends >= trailing, tf.maximum(ends - trailing, starts), ends)
        return starts, ends


def _trimming_steps(description: Mapping[str, Any] | None) -> list[bool]:
    """Return for each step that trims offsets whether it expects an added space."""
    if description is None:
        return []
    if description["type"] == "Sequence":
        return [x for step in description["processors"] for x in _trimming_steps(step)]
    return [description["add_prefix_space"]] if description.get("trim_offsets") else []


def to_bytes(text: tf.Tensor, offsets: tf.RaggedTensor) -> tf.RaggedTensor:
    """Convert offsets in characters to offsets in bytes.

    Args:
        text: raw strings [B]. What is not UTF-8 counts as the U+FFFD that replaces it.
        offsets: ragged int32 [B, K].
    """
    starts = _character_starts(text)
    end = tf.strings.length(text, unit="BYTE")
    bounds = ragged.concat([starts, ragged.column(end)])
    row_start = tf.gather(bounds.row_splits, ragged.row_ids(offsets))
    index = row_start + tf.cast(offsets.flat_values, tf.int64)
    return offsets.with_flat_values(tf.gather(bounds.flat_values, index))


def to_characters(text: tf.Tensor, offsets: tf.Tensor) -> tf.Tensor:
    """Convert offsets in bytes to offsets in characters, int32 [B, K].

    An offset within a character becomes that of its end.

    Args:
        text: raw strings [B]. What is not UTF-8 counts as the U+FFFD that replaces it.
        offsets: int32 [B, K], from 0 to the bytes of the text.
    """
    starts = _character_starts(text).to_tensor(default_value=tf.int32.max)  # [B, characters]
    # Not `tf.searchsorted`, which fails without a row.
    return tf.raw_ops.LowerBound(sorted_inputs=starts, values=tf.cast(offsets, tf.int32))


def _character_starts(text: tf.Tensor) -> tf.RaggedTensor:
    """Return the byte at which each character begins, ragged int32 [B, characters]."""
    _, starts = tf.strings.unicode_decode_with_offsets(text, "UTF-8", errors="replace")
    return tf.cast(starts, tf.int32)
