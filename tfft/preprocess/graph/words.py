"""Words of raw texts, and the tokens that begin them: `preprocess.words` as TensorFlow ops.

What is not UTF-8 counts as the U+FFFD that replaces it, which is a word by itself. Offsets are
those of the raw bytes all the same.
"""

import tensorflow as tf

from tfft.preprocess import words
from tfft.preprocess.graph import ragged


def word_starts(text: tf.Tensor) -> tf.RaggedTensor:
    """Return the bytes at which words begin, ragged int32 [B, words].

    Args:
        text: raw strings [B].
    """
    classes, starts = _characters(text)
    is_word = classes == words.WORD
    follows_word = tf.concat([tf.zeros_like(is_word[:1]), is_word[:-1]], axis=0)
    # The last word of a row does not reach into the next row.
    follows_word &= ragged.positions(starts).flat_values > 0
    begins = (is_word & ~follows_word) | (classes == words.OTHER)
    return ragged.select(starts, begins)


def strip_offsets(
    text: tf.Tensor, starts: tf.Tensor, ends: tf.Tensor, sequence: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the offsets of tokens without the white space at their ends, both int32 [B, T].

    A token of white space alone becomes empty. What is not a token of `text` has the offsets 0.

    Args:
        text: raw strings [B], the first texts of the rows.
        starts: first byte of each token, int32 [B, T].
        ends: one after its last byte, int32 [B, T].
        sequence: 0 for a token of `text`, int32 [B, T].
    """
    classes, character_starts = _characters(text)
    size = tf.strings.length(text, unit="BYTE")
    bounds = ragged.concat([character_starts, ragged.column(size)])
    is_visible = classes != words.SPACE
    character_ends = character_starts.with_flat_values(bounds[:, 1:].flat_values)
    visible_starts, visible_ends = (
        ragged.select(offsets, is_visible).to_tensor(default_value=tf.int32.max)
        for offsets in (character_starts, character_ends)
    )
    # Bounds beyond the text serve tokens that no visible character follows or precedes.
    visible_starts = tf.pad(visible_starts, [[0, 0], [0, 1]], constant_values=tf.int32.max)
    visible_ends = tf.pad(visible_ends, [[0, 0], [1, 0]])

    is_text = sequence == 0
    starts, ends = tf.where(is_text, starts, 0), tf.where(is_text, ends, 0)
    # Not `tf.searchsorted`, which fails without a row.
    index = tf.raw_ops.LowerBound(sorted_inputs=visible_starts, values=starts)
    starts = tf.minimum(tf.gather(visible_starts, index, batch_dims=1), ends)
    index = tf.raw_ops.UpperBound(sorted_inputs=visible_ends, values=ends) - 1
    return starts, tf.maximum(tf.gather(visible_ends, index, batch_dims=1), starts)


def first_tokens(
    starts: tf.Tensor, ends: tf.Tensor, sequence: tf.Tensor, word_starts: tf.RaggedTensor
) -> tf.Tensor:
    """Return which tokens are the first of their word, bool [B, T].

    A token belongs to the last word that does not start after it. Special tokens, tokens of a
    second text and tokens of an empty range belong to none. A word has no first token if it was cut
    off, if the tokenizer drops it, or if a token of an earlier word reaches over it.

    Args:
        starts: first byte of each token without white space (`strip_offsets`), int32 [B, T].
        ends: one after its last byte, int32 [B, T].
        sequence: 0 for a token of the text, 1 for one of a second text, -1 for special tokens and
            padding, int32 [B, T].
        word_starts: bytes at which words begin, ascending, ragged int32 [B, words].
    """
    bounds = word_starts.to_tensor(default_value=tf.int32.max)  # [B, W]
    # Not `tf.searchsorted`, which fails without a row. From 1; 0 before the first word.
    word = tf.raw_ops.UpperBound(sorted_inputs=bounds, values=starts)
    has_word = (sequence == 0) & (starts < ends) & (word > 0)
    rows, width = tf.shape(bounds)[0], tf.shape(bounds)[1]
    # Word 0 of all: that of the tokens without a word.
    word = tf.where(has_word, tf.range(rows)[:, None] * width + word, 0)
    position = tf.broadcast_to(tf.range(tf.shape(starts)[1]), tf.shape(starts))
    first = tf.math.unsorted_segment_min(position, word, rows * width + 1)
    return has_word & (position == tf.gather(first, word))


def _characters(text: tf.Tensor) -> tuple[tf.Tensor, tf.RaggedTensor]:
    """Return the class of each character of the batch, int32, and where each begins, ragged int32.

    Args:
        text: raw strings [B].
    """
    codes, starts = tf.strings.unicode_decode_with_offsets(text, "UTF-8", errors="replace")
    firsts, classes = map(tf.constant, words.character_classes())
    index = tf.searchsorted(firsts, codes.flat_values, side="right") - 1
    return tf.gather(classes, index), tf.cast(starts, tf.int32)
