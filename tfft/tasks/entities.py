"""Entities in texts from the tags of their words, as TensorFlow ops.

A tag is predicted once per word, by its first token. Tags are those of `data.tags.names`, and any
sequence of them has the entities that `data.tags.spans` gives it.
"""

from collections.abc import Mapping, Sequence

import tensorflow as tf

from tfft.preprocess.graph import offsets


def of_rows(
    values: Mapping[str, tf.Tensor], tokens: Mapping[str, tf.Tensor]
) -> dict[str, tf.Tensor]:
    """Return values of the tokens of windows, [E, T] each, row by row: [B, L], padded with 0.

    Each token of a row is in the result once: that of the window which answers for it.

    Args:
        values: by name.
        tokens: `own` bool [E, T]; `row` int32 [E]; and `text` [B] (`GraphTokenizer.located`).
    """
    is_own = tokens["own"]
    rows = tf.boolean_mask(tf.broadcast_to(tokens["row"][:, None], tf.shape(is_own)), is_own)
    number = tf.shape(tokens["text"])[0]
    return {
        name: tf.RaggedTensor.from_value_rowids(
            tf.boolean_mask(value, is_own), rows, number, validate=False
        ).to_tensor()
        for name, value in values.items()
    }


def decode(
    tag_ids: tf.Tensor,
    scores: tf.Tensor,
    first: tf.Tensor,
    starts: tf.Tensor,
    ends: tf.Tensor,
    text: tf.Tensor,
    types: Sequence[str],
    max_entities: int,
) -> dict[str, tf.Tensor]:
    """Return the entities of each row, in order.

    A word reaches from the start of its first token to the largest end of its tokens, which are
    those up to the next first token. An entity reaches from the start of its first word to the end
    of its last.

    Args:
        tag_ids: tag of each token, int32 [B, T]: 0 is outside, 2 t + 1 begins and 2 t + 2 continues
            an entity of type t.
        scores: of the tags, float32 [B, T].
        first: whether a token is the first of its word, bool [B, T]. The tags and scores of other
            tokens are not used.
        starts: first byte of each token in the text without white space, int32 [B, T].
        ends: one after its last byte, int32 [B, T]. Tokens of an empty range, such as special
            tokens, belong to no word.
        text: raw strings [B].
        types: names of the types by t.
        max_entities: the most entities of a row that are returned, E.

    Returns:
        `entity`, the raw bytes, and `type`, string [B, E]; `start` and `end` in characters,
        `start_byte` and `end_byte`, int32 [B, E], the ends exclusive; `score`, the mean over the
        words, float32 [B, E]; and `count` int32 [B]: the entities of the row, also those beyond E.
        Slots beyond `count` hold "" and 0.
    """
    rows = tf.boolean_mask(_row_ids(first), first)  # [K], the words of all rows
    word_tags = tf.boolean_mask(tag_ids, first)
    begins, continues = _chain(word_tags, rows)
    continues_next = tf.concat([continues[1:], tf.zeros_like(continues[:1])], axis=0)
    is_last = (begins | continues) & ~continues_next
    word_starts, word_ends = tf.boolean_mask(starts, first), _word_ends(first, starts, ends)
    entity_rows = tf.boolean_mask(rows, begins)  # [N], the entities of all rows
    entity_types = (tf.boolean_mask(word_tags, begins) - 1) // 2
    entity_starts = tf.boolean_mask(word_starts, begins)
    entity_ends = tf.maximum(tf.boolean_mask(word_ends, is_last), entity_starts)
    mean_scores = _means(tf.boolean_mask(scores, first), begins, continues)
    number = tf.shape(first)[0]

    def slots(values: tf.Tensor) -> tf.Tensor:
        """Lay out what belongs to the entities of all rows, [N], by row: [B, E]."""
        by_row = tf.RaggedTensor.from_value_rowids(values, entity_rows, number, validate=False)
        return by_row.to_tensor(shape=[None, max_entities])

    start_byte, end_byte = slots(entity_starts), slots(entity_ends)
    texts = tf.broadcast_to(text[:, None], tf.shape(start_byte))
    return {
        "entity": tf.strings.substr(texts, start_byte, end_byte - start_byte),
        "type": slots(tf.gather(tf.constant(list(types), tf.string), entity_types)),
        "start": offsets.to_characters(text, start_byte),
        "end": offsets.to_characters(text, end_byte),
        "start_byte": start_byte,
        "end_byte": end_byte,
        "score": slots(mean_scores),
        "count": tf.math.unsorted_segment_sum(tf.ones_like(entity_rows), entity_rows, number),
    }


def _row_ids(first: tf.Tensor) -> tf.Tensor:
    """Return the row of each token, int32 [B, T]."""
    return tf.broadcast_to(tf.range(tf.shape(first)[0])[:, None], tf.shape(first))


def _chain(tag_ids: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return which words begin and which continue an entity, both bool [K].

    Args:
        tag_ids: of the words of all rows, int32 [K].
        rows: row of each word, ascending, int32 [K].
    """
    # The tags 2 t + 1 and 2 t + 2 of a type are one pair; 0 is in a pair of its own.
    pair = (tag_ids + 1) // 2
    follows = (pair[1:] == pair[:-1]) & (rows[1:] == rows[:-1])
    # No word precedes the first; without any word this is empty.
    follows = tf.concat([tf.zeros_like(tag_ids[:1], tf.bool), follows], axis=0)
    is_inside = (tag_ids > 0) & (tag_ids % 2 == 0)
    continues = is_inside & follows
    return (tag_ids > 0) & ~continues, continues


def _word_ends(first: tf.Tensor, starts: tf.Tensor, ends: tf.Tensor) -> tf.Tensor:
    """Return the largest end of the tokens of each word, int32 [K].

    Args:
        first: whether a token is the first of its word, bool [B, T].
        starts: first byte of each token, int32 [B, T].
        ends: one after its last byte, int32 [B, T].
    """
    is_first = tf.cast(first, tf.int32)
    words_in_row = tf.cumsum(is_first, axis=1)
    words = tf.cumsum(tf.reshape(is_first, [-1]))
    has_word = tf.reshape((words_in_row > 0) & (starts < ends), [-1])
    # [K + 1]; word 0 is that of the tokens without a word.
    segments = tf.where(has_word, words, 0)
    count = tf.reduce_sum(is_first) + 1
    return tf.math.unsorted_segment_max(tf.reshape(ends, [-1]), segments, count)[1:]


def _means(scores: tf.Tensor, begins: tf.Tensor, continues: tf.Tensor) -> tf.Tensor:
    """Return the mean score of the words of each entity, float32 [N].

    Args:
        scores: of the words, float32 [K].
        begins: whether a word begins an entity, bool [K].
        continues: whether it continues one, bool [K].
    """
    entities = tf.cumsum(tf.cast(begins, tf.int32))  # from 1
    segments = tf.where(begins | continues, entities, 0)
    count = tf.reduce_sum(tf.cast(begins, tf.int32)) + 1
    return tf.math.unsorted_segment_mean(scores, segments, count)[1:]
