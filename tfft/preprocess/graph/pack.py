"""Truncate the ids of a row and join them with the special tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfft.utils.errors import UserError


@dataclass(frozen=True)
class Part:
    """One place in a template: the ids of a text, or a special token.

    Attributes:
        text: "A" or "B"; None for a special token.
        token_id: of the special token, else -1.
        segment: segment id of the part.
    """

    text: str | None
    token_id: int
    segment: int


def templates(description: Mapping[str, Any] | None) -> tuple[list[Part], list[Part]]:
    """Return the templates of a single row and of a pair.

    Args:
        description: the `post_processor` of a tokenizer description.

    Raises:
        UserError: the post-processor has no counterpart here.
    """
    a, b = Part("A", -1, 0), Part("B", -1, 0)
    # ByteLevel changes the offsets of tokens, not their ids.
    if description is None or description["type"] == "ByteLevel":
        return [a], [a, Part("B", -1, 1)]
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
        # RoBERTa puts two separators between the texts and has one segment.
        if kind == "RobertaProcessing":
            return [cls, a, sep], [cls, a, sep, sep, b, sep]
        b, end = Part("B", -1, 1), Part(None, sep.token_id, 1)
        return [cls, a, sep], [cls, a, sep, b, end]
    raise UserError(f"tokenizer: the post-processor {kind} has no in-graph form")


def _parts(description: Mapping[str, Any], which: str) -> list[Part]:
    parts = []
    for item in description[which]:
        # An item is {"Sequence": ...} or {"SpecialToken": ...}, which may have several ids.
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
    """Join the ids of each row: `{token_ids, padding_mask, segment_ids}`, int32 [B, T].

    Args:
        a: ids of the first texts, ragged [B, tokens].
        b: ids of the second texts, or None.
        template: the parts of a row.
        max_length: the most tokens of a row, special ones included.
        pad_id: fills up shorter rows.
    """
    texts = _truncate_texts(a, b, template, max_length)
    rows = a.nrows()
    ids, segments = [], []
    for part in template:
        part_ids = _column(rows, part.token_id) if part.text is None else texts[part.text]
        ids.append(part_ids)
        segments.append(
            part_ids.with_flat_values(tf.fill(tf.shape(part_ids.flat_values), part.segment))
        )
    joined = tf.concat(ids, axis=1)  # [B, (tokens)]
    # `to_tensor` pads at the end, to the longest row of the batch.
    return {
        "token_ids": joined.to_tensor(default_value=pad_id),
        "padding_mask": tf.ones_like(joined).to_tensor(),
        "segment_ids": tf.concat(segments, axis=1).to_tensor(),
    }


def pack_offsets(
    a: tuple[tf.RaggedTensor, tf.RaggedTensor],
    b: tuple[tf.RaggedTensor, tf.RaggedTensor] | None,
    template: Sequence[Part],
    max_length: int,
) -> dict[str, tf.Tensor]:
    """Join the offsets of each row as `pack` joins ids: `{starts, ends, sequence}`, int32 [B, T].

    Args:
        a: starts and ends of the tokens of the first texts, ragged int32 [B, tokens].
        b: those of the second texts, or None.
        template: the parts of a row.
        max_length: the most tokens of a row, special ones included.
    """
    rows = a[0].nrows()
    values = {}
    for index, name in enumerate(("starts", "ends")):
        texts = _truncate_texts(a[index], b and b[index], template, max_length)
        values[name] = [
            _column(rows, 0) if part.text is None else texts[part.text] for part in template
        ]
    sequence = [
        tf.ones_like(offsets) * (-1 if part.text is None else "AB".index(part.text))
        for part, offsets in zip(template, values["starts"], strict=True)
    ]
    return {
        **{name: tf.concat(parts, axis=1).to_tensor() for name, parts in values.items()},
        "sequence": tf.concat(sequence, axis=1).to_tensor(default_value=-1),
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


def _column(rows: tf.Tensor, value: int) -> tf.RaggedTensor:
    """Return a value for each row, ragged [rows, 1]."""
    return tf.RaggedTensor.from_tensor(tf.fill(tf.stack([rows, tf.constant(1, rows.dtype)]), value))


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
    return tf.ragged.boolean_mask(ids, tf.ragged.range(ids.row_lengths()) < lengths[:, None])
