"""Byte-level BPE in the graph (Sennrich et al. 2016; the byte alphabet of GPT-2).

Words are rows of symbol ids. Each round merges, in every word at once, the leftmost pair of the
lowest rank: exactly the order in which the host's priority queue takes them. Equal words of a
batch are worked on once.
"""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfft.preprocess.graph import codepoints, ragged
from tfft.preprocess.tokenizer import byte_letters
from tfft.utils.errors import UserError

_NO_RANK = tf.int32.max


class ByteLevelBPE(tf.Module):
    """Normalised texts [N] -> ids, ragged [N, tokens]."""

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
        symbols = [vocabulary.get(c, -1) for c in byte_letters()]
        self._byte_ids = tf.constant(symbols, tf.int32)
        self._size = len(vocabulary)
        keys, values = _merge_table(model["merges"], vocabulary)
        self._merges = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant(keys, tf.int64), tf.constant(values, tf.int64)
            ),
            default_value=-1,
        )
        self._whole = _whole_words(vocabulary) if model.get("ignore_merges") else None
        self._cuts = _word_cuts()

    def __call__(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Ids of each text."""
        if self._add_space:
            text = tf.strings.regex_replace(text, r"^(?s:([^ ]))", r" \1", replace_global=False)
        for pattern, rewrite in self._cuts:
            text = tf.strings.regex_replace(text, pattern, rewrite)
        words = ragged.regex_split(text, codepoints.CUT)
        unique, where = tf.unique(words.flat_values)
        return ragged.merged(words.with_flat_values(tf.gather(self._encode(unique), where)))

    def _encode(self, words: tf.Tensor) -> tf.RaggedTensor:
        """Ids of each word, [W] -> ragged [W, tokens]."""
        words = tf.strings.regex_replace(words, codepoints.NUL, "\0")
        raw = tf.RaggedTensor.from_row_lengths(
            tf.io.decode_raw(tf.strings.reduce_join(words, keepdims=True), tf.uint8)[0],
            tf.strings.length(words),
            validate=False,
        )
        ids = raw.with_flat_values(tf.gather(self._byte_ids, tf.cast(raw.flat_values, tf.int32)))
        # A byte that the vocabulary lacks vanishes before any merge, as on the host.
        ids = tf.ragged.boolean_mask(ids, ids >= 0)
        symbols = ids.to_tensor(default_value=-1)
        ranks, merged = self._pairs(symbols)

        def merging(symbols: tf.Tensor, ranks: tf.Tensor, merged: tf.Tensor) -> tf.Tensor:
            return tf.reduce_any(ranks < _NO_RANK)

        def merge(symbols: tf.Tensor, ranks: tf.Tensor, merged: tf.Tensor) -> tuple[tf.Tensor, ...]:
            symbols = _merge_best(symbols, ranks, merged)
            return symbols, *self._pairs(symbols)

        shape = tf.TensorShape([None, None])
        symbols, _, _ = tf.while_loop(
            merging, merge, (symbols, ranks, merged), shape_invariants=(shape, shape, shape)
        )
        result = tf.RaggedTensor.from_tensor(
            symbols, lengths=tf.math.count_nonzero(symbols >= 0, 1)
        )
        if self._whole is None:
            return result
        whole = self._whole.lookup(words)
        return tf.where(whole[:, None] >= 0, tf.RaggedTensor.from_tensor(whole[:, None]), result)

    def _pairs(self, symbols: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Rank and merged id of each neighbouring pair, both [W, L - 1]."""
        left, right = symbols[:, :-1], symbols[:, 1:]
        key = tf.cast(left, tf.int64) * self._size + tf.cast(right, tf.int64)
        found = self._merges.lookup(tf.where((left < 0) | (right < 0), tf.int64.min, key))
        rank = tf.where(found < 0, _NO_RANK, tf.cast(found // self._size, tf.int32))
        return rank, tf.cast(found % self._size, tf.int32)


def _merge_best(symbols: tf.Tensor, ranks: tf.Tensor, merged: tf.Tensor) -> tf.Tensor:
    """Replace the leftmost best pair of each word by its merged symbol, [W, L] -> [W, L - 1]."""
    width = tf.shape(ranks)[1]
    at = tf.argmin(ranks, axis=1, output_type=tf.int32)[:, None]  # the leftmost of equals
    best = tf.gather(ranks, at, batch_dims=1)
    new = tf.gather(merged, at, batch_dims=1)
    # A word with nothing left to merge keeps its symbols: its last column may be dropped only
    # if it is padding in every word, so such words are shifted from beyond their end.
    has = best < _NO_RANK
    columns = tf.range(width + 1)[None, :]
    keep_left = tf.where(has, columns < at, True)
    shifted = tf.concat([symbols[:, 1:], tf.fill([tf.shape(symbols)[0], 1], -1)], axis=1)
    out = tf.where(keep_left, symbols, tf.where(columns == at, new, shifted))
    used = tf.reduce_max(tf.math.count_nonzero(out >= 0, axis=1, dtype=tf.int32))
    return out[:, : tf.maximum(used, 1)]


def _merge_table(merges: list[Any], vocabulary: Mapping[str, int]) -> tuple[list[int], list[int]]:
    """Keys left * size + right, values rank * size + merged id."""
    size = len(vocabulary)
    keys, values = [], []
    for rank, merge in enumerate(merges):
        left, right = merge if isinstance(merge, list | tuple) else merge.split(" ")
        keys.append(vocabulary[left] * size + vocabulary[right])
        values.append(rank * size + vocabulary[left + right])
    return (keys, values) if keys else ([-1], [-1])


def _whole_words(vocabulary: Mapping[str, int]) -> tf.lookup.StaticHashTable:
    back = {c: b for b, c in enumerate(byte_letters())}
    words = {
        bytes(back[c] for c in token): i
        for token, i in vocabulary.items()
        if all(c in back for c in token)
    }
    return tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(
            tf.constant(list(words), tf.string), tf.constant(list(words.values()), tf.int32)
        ),
        default_value=-1,
    )


def _word_cuts() -> list[tuple[str, str]]:
    r"""GPT-2's pattern as RE2 rewrites that put a cut after each word.

    The original, `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`,
    looks ahead in one place only: of the spaces before a word, the last is not theirs. So the
    last space of a run is cut off first where a word follows (a plain space then begins that
    word, any other stands alone), and the rest needs no look-ahead.
    """
    letter, digit = codepoints.matching(r"\p{L}"), codepoints.matching(r"\p{N}")
    space = codepoints.matching(r"\s")
    letters, digits, spaces = letter[1:-1], digit[1:-1], space[1:-1]
    # The cut character is none of the three, so it must be shut out by name.
    cut = codepoints.CUT
    other = f"[^{spaces}{letters}{digits}{cut}]"
    return [
        (cut, "\ufffd"),
        (f"({space}+)({space})([^{spaces}])", rf"\1{cut}\2\3"),
        (
            f"('s|'t|'re|'ve|'m|'ll|'d| ?{letter}+| ?{digit}+| ?{other}+|{space}+)",
            rf"\1{cut}",
        ),
    ]
