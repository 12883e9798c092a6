"""Answers from the start and end logits of windows, as TensorFlow ops.

What `evaluation.answer_spans` computes on the host: the candidates of a window are the pairs of its
n best starts and n best ends; those of all windows of a row compete by the sum of their logits.
"""

from collections.abc import Mapping

import tensorflow as tf

from tfft.preprocess.graph import offsets


def decode(
    logits: tf.Tensor,
    tokens: Mapping[str, tf.Tensor],
    n_best: int,
    max_answer_length: int,
    null_threshold: float | None,
) -> dict[str, tf.Tensor]:
    """Return the answer to each row.

    Args:
        logits: start and end logits, float32 [E, T, 2].
        tokens: where the tokens are: `own` bool [E, T], `starts` and `ends` int32 [E, T], `row`
            int32 [E], ascending, and `text` string [B] (`GraphTokenizer.located`).
        n_best: number of starts, of ends and of candidates.
        max_answer_length: in tokens.
        null_threshold: a larger score of no answer less that of the best answer means no answer;
            None: every row with a candidate has an answer.

    Returns:
        `answer`, the raw bytes, string [B]; `start` and `end` in characters, `start_byte` and
        `end_byte`, int32 [B], the end exclusive; `score`, the probability among the n best
        candidates (and no answer, where there is a threshold), float32 [B]. No answer is "" at 0.
    """
    logits = tf.cast(logits, tf.float32)
    number = tf.shape(tokens["text"])[0]
    scores, starts, ends = _candidates(logits, tokens, n_best, max_answer_length)
    scores, starts, ends = (
        _by_row(values, tokens["row"], number, default)
        for values, default in ((scores, -float("inf")), (starts, 0), (ends, 0))
    )  # [B, candidates]
    # Of equal scores the first window's, and in it the better start's, as on the host.
    scores, order = tf.math.top_k(scores, tf.minimum(n_best, tf.shape(scores)[1]))
    starts, ends = (tf.gather(values, order, batch_dims=1) for values in (starts, ends))
    is_answer = (scores > -float("inf")) & (ends > starts)
    has_answer = tf.reduce_any(is_answer, axis=1)
    best = tf.argmax(is_answer, axis=1, output_type=tf.int32)  # the first that has a text
    start, end = (tf.gather(values, best, batch_dims=1) for values in (starts, ends))
    best_score = tf.gather(scores, best, batch_dims=1)
    null_score = tf.math.unsorted_segment_min(
        logits[:, 0, 0] + logits[:, 0, 1], tokens["row"], number
    )
    if null_threshold is None:
        is_null = ~has_answer
        score = tf.where(has_answer, _probability(best_score, scores), 0.0)
    else:
        is_null = ~has_answer | (null_score - best_score > null_threshold)
        # No answer is one of the n best, or is added to them.
        is_last = (tf.range(tf.shape(scores)[1]) == n_best - 1) & (scores < null_score[:, None])
        entries = tf.concat([tf.where(is_last, -float("inf"), scores), null_score[:, None]], axis=1)
        score = _probability(tf.where(is_null, null_score, best_score), entries)
    start, end = tf.where(is_null, 0, start), tf.where(is_null, 0, end)
    return {
        "answer": tf.strings.substr(tokens["text"], start, end - start),
        "start": offsets.to_characters(tokens["text"], start[:, None])[:, 0],
        "end": offsets.to_characters(tokens["text"], end[:, None])[:, 0],
        "start_byte": start,
        "end_byte": end,
        "score": score,
    }


def _candidates(
    logits: tf.Tensor, tokens: Mapping[str, tf.Tensor], n_best: int, max_answer_length: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return the scores of the best pairs of each window, best first, and their bytes, [E, n].

    The score of a pair that is no answer is minus infinity.
    """
    count = tf.minimum(n_best, tf.shape(logits)[1])
    start_logits, first = tf.math.top_k(logits[..., 0], count)  # [E, k]
    end_logits, last = tf.math.top_k(logits[..., 1], count)
    length = last[:, None, :] - first[:, :, None] + 1  # [E, k, k]
    is_valid = (length > 0) & (length <= max_answer_length)
    is_valid &= tf.gather(tokens["own"], first, batch_dims=1)[:, :, None]
    is_valid &= tf.gather(tokens["own"], last, batch_dims=1)[:, None, :]
    scores = start_logits[:, :, None] + end_logits[:, None, :]
    scores = tf.where(is_valid, scores, -float("inf"))
    flat = tf.reshape(scores, [-1, count * count])
    best, pair = tf.math.top_k(flat, tf.minimum(n_best, count * count))  # [E, n]
    starts = tf.gather(tokens["starts"], first, batch_dims=1)
    ends = tf.gather(tokens["ends"], last, batch_dims=1)
    return (
        best,
        tf.gather(starts, pair // count, batch_dims=1),
        tf.gather(ends, pair % count, batch_dims=1),
    )


def _by_row(values: tf.Tensor, rows: tf.Tensor, number: tf.Tensor, default: float) -> tf.Tensor:
    """Return what belongs to windows, [E, n], side by side for each row: [B, windows * n]."""
    ragged = tf.RaggedTensor.from_value_rowids(values, rows, number, validate=False)
    dense = ragged.to_tensor(default_value=tf.cast(default, values.dtype))  # [B, windows, n]
    flat = tf.reshape(dense, [number, tf.shape(dense)[1] * tf.shape(values)[1]])
    # One more, so that there is one where there is no row.
    return tf.pad(flat, [[0, 0], [0, 1]], constant_values=tf.cast(default, values.dtype))


def _probability(score: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
    """Return the softmax over scores, [B, n], of one of them, [B]."""
    return tf.exp(score - tf.reduce_logsumexp(scores, axis=1))
