"""Cutting the ids of a row to length and joining them with the special tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfft.utils.errors import UserError


@dataclass(frozen=True)
class Part:
    """One place of a template: the ids of text A or B, or a special token."""

    text: str | None  # "A", "B" or None
    token_id: int
    segment: int


def templates(description: Mapping[str, Any] | None) -> tuple[list[Part], list[Part]]:
    """The templates of a single row and of a pair.

    Raises:
        UserError: the post-processor has no counterpart here.
    """
    a, b = Part("A", -1, 0), Part("B", -1, 0)
    if description is None or description["type"] == "ByteLevel":
        return [a], [a, b]
    kind = description["type"]
    if kind == "Sequence":
        steps = [s for s in description["processors"] if s["type"] != "ByteLevel"]
        if len(steps) > 1:
            raise UserError("tokenizer: more than one post-processor has no in-graph form")
        return templates(steps[0] if steps else None)
    if kind == "TemplateProcessing":
        return _parts(description, "single"), _parts(description, "pair")
    if kind in ("BertProcessing", "RobertaProcessing"):
        cls, sep = (Part(None, description[name][1], 0) for name in ("cls", "sep"))
        if kind == "RobertaProcessing":
            return [cls, a, sep], [cls, a, sep, sep, b, sep]
        b, end = Part("B", -1, 1), Part(None, sep.token_id, 1)
        return [cls, a, sep], [cls, a, sep, b, end]
    raise UserError(f"tokenizer: the post-processor {kind} has no in-graph form")


def _parts(description: Mapping[str, Any], which: str) -> list[Part]:
    parts = []
    for item in description[which]:
        (kind, value), *_ = item.items()
        if kind == "Sequence":
            parts.append(Part(value["id"], -1, value["type_id"]))
        else:
            ids = description["special_tokens"][value["id"]]["ids"]
            parts += [Part(None, token, value["type_id"]) for token in ids]
    return parts


def pack(
    a: tf.RaggedTensor,
    b: tf.RaggedTensor | None,
    template: Sequence[Part],
    max_length: int,
    pad_id: int,
) -> dict[str, tf.Tensor]:
    """Ragged ids [B, tokens] -> `{token_ids, padding_mask, segment_ids}`, int32 [B, T]."""
    room = max_length - sum(part.text is None for part in template)
    if b is None:
        texts = {"A": a[:, :room]}
    else:
        keep_a, keep_b = longest_first(a.row_lengths(), b.row_lengths(), room)
        texts = {"A": _first(a, keep_a), "B": _first(b, keep_b)}
    rows = a.nrows()
    ids, segments = [], []
    for part in template:
        if part.text is None:
            piece = tf.RaggedTensor.from_tensor(
                tf.fill(tf.stack([rows, tf.constant(1, rows.dtype)]), part.token_id)
            )
        else:
            piece = texts[part.text]
        ids.append(piece)
        segments.append(piece.with_flat_values(tf.fill(tf.shape(piece.flat_values), part.segment)))
    joined = tf.concat(ids, axis=1)
    return {
        "token_ids": joined.to_tensor(default_value=pad_id),
        "padding_mask": tf.ones_like(joined).to_tensor(),
        "segment_ids": tf.concat(segments, axis=1).to_tensor(),
    }


def longest_first(a: tf.Tensor, b: tf.Tensor, room: int) -> tuple[tf.Tensor, tf.Tensor]:
    """How many tokens of each text of a pair stay, [B] each: the longer gives way first.

    The same arithmetic as the host's: where both are longer than half, the text that was the
    longer (the second, if they were equal) gets the odd token.
    """
    short = tf.minimum(a, b)
    half = tf.cast(room // 2, a.dtype)
    room_ = tf.cast(room, a.dtype)
    cut_long = tf.where(short > room_, short, tf.maximum(short, room_ - short))
    both = short + cut_long > room_
    short_kept = tf.where(both, half, short)
    long_kept = tf.where(both, half + room % 2, cut_long)
    fits = a + b <= room_
    first_is_longer = a > b
    keep_a = tf.where(first_is_longer, long_kept, short_kept)
    keep_b = tf.where(first_is_longer, short_kept, long_kept)
    return tf.where(fits, a, keep_a), tf.where(fits, b, keep_b)


def _first(ids: tf.RaggedTensor, crop_fraction: tf.Tensor) -> tf.RaggedTensor:
    return tf.ragged.boolean_mask(ids, tf.ragged.range(ids.row_lengths()) < crop_fraction[:, None])
