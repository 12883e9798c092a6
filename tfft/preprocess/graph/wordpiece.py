"""WordPiece in the graph: BERT's splits, then tensorflow-text's trie (Song et al. 2021)."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tensorflow_text as tf_text

from tfft.preprocess.graph import codepoints, ragged
from tfft.preprocess.graph.aligned import AlignedText, AlignedTokens
from tfft.utils.errors import UserError

# Replaces words that are too long, which the host maps to the unknown token; in no vocabulary.
_TOO_LONG = codepoints.SEPARATOR


class WordPiece(tf.Module):
    """WordPiece as TensorFlow ops: normalized texts [N] -> ids, ragged [N, tokens].

    Args:
        model: the `model` of a tokenizer description.
        pre_tokenizer: its `pre_tokenizer`.

    Raises:
        UserError: the pre-tokenizer is not BERT's.
    """

    def __init__(self, model: Mapping[str, Any], pre_tokenizer: Mapping[str, Any] | None):
        super().__init__()
        kind = (pre_tokenizer or {}).get("type")
        if kind != "BertPreTokenizer":
            raise UserError(f"tokenizer: WordPiece after {kind} has no in-graph form")
        # A duplicate in vocab.txt leaves a gap in the ids: fill it with what matches nothing.
        size = max(model["vocab"].values()) + 1
        vocabulary = [f"{codepoints.SEPARATOR}{i}" for i in range(size)]
        for token, i in model["vocab"].items():
            vocabulary[i] = token
        self._spaces, self._punctuation = codepoints.bert_splits()
        self._max_characters = model["max_input_chars_per_word"]
        self._pieces = tf_text.FastWordpieceTokenizer(
            vocabulary,
            suffix_indicator=model["continuing_subword_prefix"],
            # The op counts bytes, the host characters: this bound never applies, `__call__` counts.
            max_bytes_per_word=8 * self._max_characters,
            token_out_type=tf.int32,
            unknown_token=model["unk_token"],
            no_pretokenization=True,
        )

    def __call__(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Return the ids of each text."""
        words = ragged.regex_split(text, f"{self._spaces}+|{self._punctuation}", self._punctuation)
        length = tf.strings.length(words.flat_values, unit="UTF8_CHAR")
        bounded = tf.where(length > self._max_characters, _TOO_LONG, words.flat_values)
        return ragged.merge_inner_axes(self._pieces.tokenize(words.with_flat_values(bounded)))

    def aligned(self, text: AlignedText) -> AlignedTokens:
        """Return the ids of each text with their origins."""
        words, word_begin = ragged.regex_split_with_offsets(
            text.strings(), f"{self._spaces}+|{self._punctuation}", self._punctuation
        )
        flat = words.flat_values
        too_long = tf.strings.length(flat, unit="UTF8_CHAR") > self._max_characters
        ids, begins, ends = self._pieces.tokenize_with_offsets(
            tf.where(too_long, _TOO_LONG, flat)
        )  # [all words, tokens]
        word = ragged.row_ids(ids)
        # An unknown token stands for its word.
        word_size = tf.cast(tf.strings.length(flat), ends.dtype)
        end = tf.where(tf.gather(too_long, word), tf.gather(word_size, word), ends.flat_values)
        row, offset = tf.gather(ragged.row_ids(words), word), tf.gather(word_begin, word)
        ids = ragged.merge_inner_axes(words.with_flat_values(ids))
        return text.tokens(
            ids,
            text.flat_index(row, offset + tf.cast(begins.flat_values, tf.int64)),
            text.flat_index(row, offset + tf.cast(end, tf.int64) - 1),
        )
