"""Byte-level BPE in the graph (Sennrich et al. 2016; the byte alphabet of GPT-2).

Words are rows of symbol ids. Each round merges, in all words in parallel, the leftmost pair of the
lowest rank, which is the order of the host's priority queue. Equal words of a batch are encoded
once.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfft.preprocess.graph import codepoints, ragged
from tfft.preprocess.graph.aligned import AlignedText, AlignedTokens
from tfft.preprocess.tokenizer import byte_alphabet
from tfft.utils.errors import UserError

# Above every rank, so `argmin` takes a pair that cannot merge only where no other is left.
_NO_RANK = tf.int32.max


class ByteLevelBPE(tf.Module):
    """Byte-level BPE as TensorFlow ops: normalized texts [N] -> ids, ragged [N, tokens].

    Args:
        model: the `model` of a tokenizer description.
        pre_tokenizer: its `pre_tokenizer`.

    Raises:
        UserError: the description has options without a counterpart here.
    """

    def __init__(self, model: Mapping[str, Any], pre_tokenizer: Mapping[str, Any] | None):
        super().__init__()
        kind = (pre_tokenizer or {}).get("type")
        if kind != "ByteLevel" or not pre_tokenizer.get("use_regex", True):
            raise UserError(f"tokenizer: BPE after {kind} has no in-graph form")
        for option in ("continuing_subword_prefix", "end_of_word_suffix", "dropout", "unk_token"):
            if option != "unk_token" and model.get(option):
                raise UserError(f"tokenizer: BPE with {option} has no in-graph form")
        self._add_space = pre_tokenizer["add_prefix_space"]
        vocabulary = model["vocab"]
        # [256]; -1 where the vocabulary lacks a byte.
        symbols = [vocabulary.get(c, -1) for c in byte_alphabet()]
        self._byte_ids = tf.constant(symbols, tf.int32)
        self._has_all_bytes = min(symbols) >= 0
        self._size = len(vocabulary)
        keys, values = _merge_table(model["merges"], vocabulary)
        self._merges = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant(keys, tf.int64), tf.constant(values, tf.int64)
            ),
            default_value=-1,
        )
        self._word_ids = _word_table(vocabulary) if model.get("ignore_merges") else None
        self._split_rules = _build_split_rules()
        self._lengths = _token_lengths(vocabulary)

    def __call__(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Return the ids of each text."""
        if self._add_space:
            # As the host: no second space before a text that begins with one.
            text = tf.strings.regex_replace(text, r"^(?s:([^ ]))", r" \1", replace_global=False)
        for pattern, rewrite in self._split_rules:
            text = tf.strings.regex_replace(text, pattern, rewrite)
        words = ragged.regex_split(text, codepoints.SEPARATOR)
        unique, index = tf.unique(words.flat_values)
        return ragged.merge_inner_axes(
            words.with_flat_values(tf.gather(self._encode(unique), index))
        )

    def aligned(self, text: AlignedText) -> AlignedTokens:
        """Return the ids of each text with their origins.

        Raises:
            UserError: the vocabulary lacks a byte. Tokens then do not partition the text.
        """
        if not self._has_all_bytes:
            raise UserError("tokenizer: offsets need a vocabulary with all 256 bytes")
        strings = text.strings()
        ids = self(strings)
        # The tokens partition the text.
        ends = ragged.cumulative(ids.with_flat_values(tf.gather(self._lengths, ids.flat_values)))
        begin = ends.flat_values - tf.gather(self._lengths, ids.flat_values)
        end, row = ends.flat_values, ragged.row_ids(ids)
        if self._add_space:
            # The space that `__call__` adds has the origin of the first character.
            is_added = ~tf.strings.regex_full_match(strings, "(?s:( .*)?)")
            shift = tf.gather(tf.cast(is_added, tf.int32), row)
            begin, end = tf.maximum(begin - shift, 0), tf.maximum(end - shift, 1)
        return text.tokens(ids, text.flat_index(row, begin), text.flat_index(row, end - 1))

    def _encode(self, words: tf.Tensor) -> tf.RaggedTensor:
        """Return the ids of each word, [W] -> ragged [W, tokens]."""
        # The byte alphabet has a letter for byte 0, so U+0000 must be one again.
        words = tf.strings.regex_replace(words, codepoints.NUL, "\0")
        # `decode_raw` requires strings of equal length: decode all words as one, then split them.
        raw = tf.RaggedTensor.from_row_lengths(
            tf.io.decode_raw(tf.strings.reduce_join(words, keepdims=True), tf.uint8)[0],
            tf.strings.length(words),
            validate=False,
        )
        ids = raw.with_flat_values(tf.gather(self._byte_ids, tf.cast(raw.flat_values, tf.int32)))
        # The host drops bytes that the vocabulary lacks before it merges.
        ids = ragged.select(ids, ids.flat_values >= 0)
        symbols = ids.to_tensor(default_value=-1)  # [W, L], -1 after each word
        ranks, merged = self._pairs(symbols)

        def can_merge(symbols: tf.Tensor, ranks: tf.Tensor, merged: tf.Tensor) -> tf.Tensor:
            return tf.reduce_any(ranks < _NO_RANK)

        def merge_once(
            symbols: tf.Tensor, ranks: tf.Tensor, merged: tf.Tensor
        ) -> tuple[tf.Tensor, ...]:
            symbols = _merge_best(symbols, ranks, merged)
            return symbols, *self._pairs(symbols)

        # L shrinks from round to round.
        shape = tf.TensorShape([None, None])
        symbols, _, _ = tf.while_loop(
            can_merge, merge_once, (symbols, ranks, merged), shape_invariants=(shape, shape, shape)
        )
        result = tf.RaggedTensor.from_tensor(
            symbols, lengths=tf.math.count_nonzero(symbols >= 0, 1)
        )
        # With `ignore_merges` a word that is in the vocabulary gets its id directly.
        if self._word_ids is None:
            return result
        word_ids = self._word_ids.lookup(words)
        return tf.where(
            word_ids[:, None] >= 0, tf.RaggedTensor.from_tensor(word_ids[:, None]), result
        )

    def _pairs(self, symbols: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the rank and the merged id of each neighbouring pair, both [W, L - 1]."""
        left, right = symbols[:, :-1], symbols[:, 1:]
        # int64: the square of a vocabulary of 50,000 does not fit int32.
        key = tf.cast(left, tf.int64) * self._size + tf.cast(right, tf.int64)
        # No key is int64.min, so padding never merges.
        packed = self._merges.lookup(tf.where((left < 0) | (right < 0), tf.int64.min, key))
        rank = tf.where(packed < 0, _NO_RANK, tf.cast(packed // self._size, tf.int32))
        return rank, tf.cast(packed % self._size, tf.int32)


def _merge_best(symbols: tf.Tensor, ranks: tf.Tensor, merged: tf.Tensor) -> tf.Tensor:
    """Replace the leftmost best pair of each word by its merged symbol, [W, L] -> [W, L - 1]."""
    width = tf.shape(ranks)[1]
    position = tf.argmin(ranks, axis=1, output_type=tf.int32)[:, None]  # the leftmost of equals
    best_rank = tf.gather(ranks, position, batch_dims=1)
    merged_symbol = tf.gather(merged, position, batch_dims=1)
    # A finished word keeps all its symbols. The last column may therefore be dropped only if it is
    # padding in all words, which `max_length` below decides.
    can_merge = best_rank < _NO_RANK
    columns = tf.range(width + 1)[None, :]
    keep_left = tf.where(can_merge, columns < position, True)
    shifted = tf.concat([symbols[:, 1:], tf.fill([tf.shape(symbols)[0], 1], -1)], axis=1)
    result = tf.where(keep_left, symbols, tf.where(columns == position, merged_symbol, shifted))
    max_length = tf.reduce_max(tf.math.count_nonzero(result >= 0, axis=1, dtype=tf.int32))
    return result[:, : tf.maximum(max_length, 1)]


def _merge_table(merges: list[Any], vocabulary: Mapping[str, int]) -> tuple[list[int], list[int]]:
    """Return keys and values of the table of merges.

    A key packs a pair as left * size + right, a value packs rank * size + merged id.
    """
    size = len(vocabulary)
    keys, values = [], []
    for rank, merge in enumerate(merges):
        left, right = merge if isinstance(merge, list | tuple) else merge.split(" ")
        keys.append(vocabulary[left] * size + vocabulary[right])
        values.append(rank * size + vocabulary[left + right])
    return (keys, values) if keys else ([-1], [-1])


def _token_lengths(vocabulary: Mapping[str, int]) -> np.ndarray:
    """Return the bytes of each token by its id, where `NUL` stands for U+0000, int32 [V]."""
    nul = byte_alphabet()[0]
    lengths = np.zeros(max(vocabulary.values()) + 1, np.int32)
    for token, i in vocabulary.items():
        # A letter of the byte alphabet is one byte.
        lengths[i] = len(token) + token.count(nul) * (len(codepoints.NUL.encode()) - 1)
    return lengths


def _word_table(vocabulary: Mapping[str, int]) -> tf.lookup.StaticHashTable:
    """Return a table from the bytes of a token to its id."""
    byte_of = {c: b for b, c in enumerate(byte_alphabet())}
    words = {
        bytes(byte_of[c] for c in token): i
        for token, i in vocabulary.items()
        if all(c in byte_of for c in token)
    }
    return tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(
            tf.constant(list(words), tf.string), tf.constant(list(words.values()), tf.int32)
        ),
        default_value=-1,
    )


def _build_split_rules() -> list[tuple[str, str]]:
    r"""Return GPT-2's pattern as RE2 rewrites that put a separator after each word.

    The original, `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`,
    needs look-ahead, which RE2 lacks, in one place only: the last of the spaces before a word is
    not part of them. So the last space of a run is split off first if a word follows (a plain space
    then begins that word, any other is a word by itself), and the rest needs no look-ahead.
    """
    letter, digit = (
        codepoints.characters_matching(r"\p{L}"),
        codepoints.characters_matching(r"\p{N}"),
    )
    space = codepoints.characters_matching(r"\s")
    letters, digits, spaces = letter[1:-1], digit[1:-1], space[1:-1]
    # The separator is none of the three classes, so it must be excluded explicitly.
    separator = codepoints.SEPARATOR
    other = f"[^{spaces}{letters}{digits}{separator}]"
    return [
        # A separator in the text itself would split it, so it becomes U+FFFD.
        (separator, "\ufffd"),
        (f"({space}+)({space})([^{spaces}])", rf"\1{separator}\2\3"),
        (
            f"('s|'t|'re|'ve|'m|'ll|'d| ?{letter}+| ?{digit}+| ?{other}+|{space}+)",
            rf"\1{separator}",
        ),
    ]
