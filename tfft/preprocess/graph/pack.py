"""Truncate or divide the ids of a row, and join them with the special tokens."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

from tfft.preprocess.graph import ragged
from tfft.preprocess.template import Part
from tfft.preprocess.windows import Windows


def pack(
    a: tf.RaggedTensor,
    b: tf.RaggedTensor | None,
    template: Sequence[Part],
    max_length: int,
    pad_id: int,
) -> dict[str, tf.Tensor]:
    """Join the ids of each row: `{token_ids, padding_mask, segment_ids}`, int32 [B, T].

    Args:
        a: ids of the first texts, ragged [B, tokens].
        b: ids of the second texts, or None.
        template: the parts of a row.
        max_length: the most tokens of a row, special ones included.
        pad_id: fills up shorter rows.
    """
    return _join(_truncate_texts(a, b, template, max_length), template, pad_id)


class WindowPlan(NamedTuple):
    """The windows of all rows, row after row.

    Attributes:
        rows: row of each window, int32 [E].
        starts: first token of each in the text that is divided, int32 [E].
        ends: one after its last token, int32 [E].
        own_starts: first token that it answers for, int32 [E].
        own_ends: one after the last of these, int32 [E].
    """

    rows: tf.Tensor
    starts: tf.Tensor
    ends: tf.Tensor
    own_starts: tf.Tensor
    own_ends: tf.Tensor


def plan_windows(
    lengths: tf.Tensor, first_lengths: tf.Tensor | None, windows: Windows
) -> WindowPlan:
    """Return the windows of texts, as `Windows.bounds` and `windows.own_tokens` divide them.

    Args:
        lengths: tokens of the texts that are divided, int32 [B].
        first_lengths: tokens of the first texts of pairs, int32 [B]; None: single texts.
        windows: how they are divided.
    """
    room = tf.fill(tf.shape(lengths), windows.size)
    if first_lengths is not None:
        room -= first_lengths
    step = room - windows.stride
    counts = 1 + tf.maximum(0, -((room - lengths) // step))
    counts = tf.minimum(counts, windows.most)
    rows = tf.repeat(tf.range(tf.shape(lengths)[0]), counts)
    index = tf.ragged.range(counts).flat_values
    starts = index * tf.gather(step, rows)
    ends = tf.minimum(starts + tf.gather(room, rows), tf.gather(lengths, rows))
    if first_lengths is not None:
        return WindowPlan(rows, starts, ends, starts, ends)
    half = windows.stride // 2
    is_last = index == tf.gather(counts, rows) - 1
    own_starts = tf.where(index == 0, starts, starts + windows.stride - half)
    return WindowPlan(rows, starts, ends, own_starts, tf.where(is_last, ends, ends - half))


def pack_windows(
    plan: WindowPlan,
    tokens: Mapping[str, tf.Tensor],
    first_ids: tf.RaggedTensor | None,
    template: Sequence[Part],
    pad_id: int,
) -> dict[str, tf.Tensor]:
    """Join the tokens of each window with the special tokens.

    Args:
        plan: the windows.
        tokens: of the texts that are divided: `ids`, and what else belongs to them, [B, L] each.
        first_ids: ids of the first texts of pairs, ragged [B, tokens]; None: single texts.
        template: the parts of a row.
        pad_id: fills up shorter windows.

    Returns:
        `token_ids`, `padding_mask` and `segment_ids`, int32 [E, T]; `own` bool [E, T], the tokens
        that a window answers for; and what else belongs to these, by name, 0 for other tokens.
    """
    width = tf.shape(tokens["ids"])[1]
    position = tf.ragged.range(plan.starts, plan.ends)  # in the text, ragged [E, tokens]
    window = ragged.row_ids(position)
    index = tf.gather(plan.rows, window) * width + position.flat_values
    is_own = (position.flat_values >= tf.gather(plan.own_starts, window)) & (
        position.flat_values < tf.gather(plan.own_ends, window)
    )

    def of_windows(values: tf.Tensor) -> tf.Tensor:
        return tf.gather(tf.reshape(values, [-1]), index)

    def joined(values: tf.Tensor) -> tf.Tensor:
        """Return values of the divided texts with zeros for other tokens, [E, T]."""
        text = position.with_flat_values(values)
        zero = _column(position.nrows(), tf.zeros([], values.dtype))
        parts = {None: zero, divided: text}
        if first is not None:
            parts["A"] = tf.cast(tf.zeros_like(first), values.dtype)
        return ragged.concat([parts[part.text] for part in template]).to_tensor()

    first = None if first_ids is None else tf.gather(first_ids, plan.rows)
    divided = "A" if first is None else "B"
    texts = {"A": first, divided: position.with_flat_values(of_windows(tokens["ids"]))}
    others = {name: of_windows(values) for name, values in tokens.items() if name != "ids"}
    return {
        **_join(texts, template, pad_id),
        "own": joined(is_own),
        **{name: joined(tf.where(is_own, v, tf.zeros_like(v))) for name, v in others.items()},
    }


def _join(
    texts: Mapping[str, tf.RaggedTensor], template: Sequence[Part], pad_id: int
) -> dict[str, tf.Tensor]:
    """Join the ids of texts, ragged [B, tokens] each, with the special tokens."""
    rows = next(iter(texts.values())).nrows()
    ids, segments = [], []
    for part in template:
        part_ids = _column(rows, part.token_id) if part.text is None else texts[part.text]
        ids.append(part_ids)
        segments.append(
            part_ids.with_flat_values(tf.fill(tf.shape(part_ids.flat_values), part.segment))
        )
    joined = ragged.concat(ids)  # [B, (tokens)]
    # `to_tensor` pads at the end, to the longest row of the batch.
    return {
        "token_ids": joined.to_tensor(default_value=pad_id),
        "padding_mask": tf.ones_like(joined).to_tensor(),
        "segment_ids": ragged.concat(segments).to_tensor(),
    }


def _truncate_texts(
    a: tf.RaggedTensor, b: tf.RaggedTensor | None, template: Sequence[Part], max_length: int
) -> dict[str, tf.RaggedTensor]:
    # As on the host, special tokens are never truncated.
    budget = max_length - sum(part.text is None for part in template)
    if b is None:
        return {"A": a[:, :budget]}
    length_a, length_b = longest_first(a.row_lengths(), b.row_lengths(), budget)
    return {"A": _truncate(a, length_a), "B": _truncate(b, length_b)}


def _column(rows: tf.Tensor, value: int | tf.Tensor) -> tf.RaggedTensor:
    """Return a value for each row, ragged [rows, 1]."""
    return ragged.column(tf.fill(rows[None], value))


def longest_first(a: tf.Tensor, b: tf.Tensor, budget: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the lengths of both texts after truncation, [B] each: the longer is cut first.

    The arithmetic is the host's. If both texts are longer than half the budget, the one that was
    longer (the second, if they were equal) gets the odd token.

    Args:
        a: tokens of the first texts, [B].
        b: tokens of the second texts, [B].
        budget: tokens for both.
    """
    shorter = tf.minimum(a, b)
    half = tf.cast(budget // 2, a.dtype)
    limit = tf.cast(budget, a.dtype)
    # Tokens left for the longer text, never fewer than the shorter one has.
    rest = tf.where(shorter > limit, shorter, tf.maximum(shorter, limit - shorter))
    both_cut = shorter + rest > limit
    shorter_length = tf.where(both_cut, half, shorter)
    longer_length = tf.where(both_cut, half + budget % 2, rest)
    fits = a + b <= limit
    first_is_longer = a > b
    length_a = tf.where(first_is_longer, longer_length, shorter_length)
    length_b = tf.where(first_is_longer, shorter_length, longer_length)
    return tf.where(fits, a, length_a), tf.where(fits, b, length_b)


def _truncate(ids: tf.RaggedTensor, lengths: tf.Tensor) -> tf.RaggedTensor:
    index = tf.cast(ragged.positions(ids).flat_values, lengths.dtype)
    return ragged.select(ids, index < tf.gather(lengths, ragged.row_ids(ids)))
