"""Texts whose characters know the character of the raw text that they came from.

Normalized text differs from raw text in length and order, so the offsets of a token cannot be
computed from its string. The host therefore keeps, beside each normalized character, the raw
character that it replaces. Here both are ragged integers, and each step of a normalizer maps both.

A step that treats characters one by one runs once for each distinct character of a batch, which
costs less than to run it on the text.
"""

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf
import tensorflow_text as tf_text

from tfft.preprocess.graph import codepoints, ragged


@dataclass(frozen=True)
class AlignedText:
    """Texts as code points, each with its origin.

    Attributes:
        characters: code points, ragged int32 [N, characters]. `codepoints.NUL` stands for U+0000.
        source: for each of them the index of a raw character, ragged int32 [N, characters].
    """

    characters: tf.RaggedTensor
    source: tf.RaggedTensor

    @classmethod
    def from_strings(cls, text: tf.Tensor) -> "AlignedText":
        """Decode strings [N], which are their own origin."""
        characters = decode(text)
        return cls(characters, ragged.positions(characters))

    def strings(self) -> tf.Tensor:
        """Return the texts as strings [N]."""
        return tf.strings.unicode_encode(self.characters, "UTF-8")

    def flat_index(self, rows: tf.Tensor, offsets: tf.Tensor) -> tf.Tensor:
        """Return which of all characters of the batch holds a byte, int64 [K].

        Args:
            rows: the text of each byte, [K].
            offsets: of the bytes in `strings()`, [K].
        """
        code = self.characters.flat_values
        bounds = (0x7F, 0x7FF, 0xFFFF)  # the last code points of one, two and three bytes
        size = 1 + tf.add_n([tf.cast(code > bound, tf.int64) for bound in bounds])
        ends = tf.pad(tf.cumsum(size), [[1, 0]])
        row_start = tf.gather(ends, tf.gather(self.characters.row_splits, rows))
        holder = tf.repeat(tf.range(tf.size(size, tf.int64)), size)
        return tf.gather(holder, row_start + tf.cast(offsets, tf.int64))

    def tokens(self, ids: tf.RaggedTensor, first: tf.Tensor, last: tf.Tensor) -> "AlignedTokens":
        """Return tokens with the origins of their first and last characters.

        Args:
            ids: ragged [N, tokens].
            first: which of all characters of the batch begins each of all tokens.
            last: the same for the ends.
        """
        source = self.source.flat_values
        return AlignedTokens(
            ids,
            ids.with_flat_values(tf.gather(source, first)),
            ids.with_flat_values(tf.gather(source, last)),
        )

    def replace_each(self, forms: tf.RaggedTensor) -> "AlignedText":
        """Replace each character by its form, which has the origin of the character.

        Args:
            forms: code points, ragged [all characters of the batch, characters].
        """
        return self.regroup(forms, self.characters.row_splits, ragged.row_ids(forms))

    def regroup(self, forms: tf.RaggedTensor, splits: tf.Tensor, index: tf.Tensor) -> "AlignedText":
        """Return the texts that consist of forms.

        Args:
            forms: code points, ragged [F, characters].
            splits: which of the forms make up each text, [N + 1].
            index: for each character of the forms, which of all characters of the batch before this
                step gives its origin.
        """
        splits = tf.gather(forms.row_splits, splits)
        return AlignedText(
            tf.RaggedTensor.from_row_splits(forms.flat_values, splits, validate=False),
            tf.RaggedTensor.from_row_splits(
                tf.gather(self.source.flat_values, index), splits, validate=False
            ),
        )

    def select(self, mask: tf.Tensor) -> "AlignedText":
        """Return the characters where a mask [all characters of the batch] is true."""
        return AlignedText(ragged.select(self.characters, mask), ragged.select(self.source, mask))


@dataclass(frozen=True)
class AlignedTokens:
    """Tokens of texts, each with its first and last raw character.

    Attributes:
        ids: ragged int32 [N, tokens].
        first: index of the raw character that its first character came from, ragged int32.
        last: the same for its last character.
    """

    ids: tf.RaggedTensor
    first: tf.RaggedTensor
    last: tf.RaggedTensor


def decode(text: tf.Tensor) -> tf.RaggedTensor:
    """Return the code points of strings [N], ragged int32 [N, characters]."""
    return tf.strings.unicode_decode(text, "UTF-8")


def map_characters(text: AlignedText, op: Callable[[tf.Tensor], tf.Tensor]) -> AlignedText:
    """Apply a string op to each character by itself."""
    return text.replace_each(_forms(text, op))


def decompose(text: AlignedText, form: str) -> AlignedText:
    """Decompose each character, then sort the marks of each base.

    The host gives the n-th character that begins a decomposition the n-th origin, also where a mark
    was moved before another one.

    Args:
        text: the texts.
        form: "NFD" or "NFKD".
    """
    forms, begins, _ = _decompose(text, form)
    index = tf.cumsum(tf.cast(begins, tf.int64)) - 1
    return text.regroup(forms, text.characters.row_splits, index)


def compose(text: AlignedText, form: str) -> AlignedText:
    """Compose what decomposition separates.

    For each of its parts that begins a decomposition, a composed character takes one origin from
    those that are left, and keeps the first. Without such a part it has the last one taken.

    Args:
        text: the texts.
        form: "NFC" or "NFKC".
    """
    forms, begins, span = _decompose(text, form.replace("C", "D"))
    codes = decode(tf_text.normalize_utf8(text.strings(), form))
    parts, _, span_of_parts = _decompose(AlignedText(codes, codes), "NFD", sort=False)
    # Both are the same characters in another order within a span, equal ones in the same order.
    order, order_of_parts = (
        tf.argsort(spans * 0x110000 + tf.cast(values.flat_values, tf.int64), stable=True)
        for spans, values in ((span, forms), (span_of_parts, parts))
    )
    part = tf.gather(order, tf.math.invert_permutation(order_of_parts))
    begins = tf.gather(tf.cast(begins, tf.int64), part)
    taken = tf.math.segment_sum(begins, ragged.row_ids(parts))
    index = tf.cumsum(taken, exclusive=True) - tf.cast(taken == 0, tf.int64)
    single = tf.RaggedTensor.from_row_lengths(
        codes.flat_values, tf.ones_like(codes.flat_values, tf.int64), validate=False
    )
    return text.regroup(single, codes.row_splits, index)


def replace_matches(text: AlignedText, pattern: str, content: str) -> AlignedText:
    """Replace the matches of an RE2 pattern; the origin is the last character of the match."""
    parts = ragged.regex_split(text.strings(), pattern, pattern)
    is_match = tf.strings.regex_full_match(parts.flat_values, f"(?:{pattern})")
    length = tf.strings.length(parts.flat_values, unit="UTF8_CHAR")
    forms = decode(tf.where(is_match, content, parts.flat_values))
    rows = ragged.row_ids(forms)
    position = tf.where(
        tf.gather(is_match, rows), tf.gather(length, rows) - 1, ragged.positions(forms).flat_values
    )
    index = tf.gather(tf.cumsum(length, exclusive=True), rows) + position
    return text.regroup(forms, parts.row_splits, index)


def strip(text: AlignedText, left: bool, right: bool) -> AlignedText:
    """Drop the whitespace at the beginning, at the end, or at both."""
    space = codepoints.whitespace()
    strings = text.strings()
    rest = tf.strings.regex_replace(strings, f"^{space}+", "") if left else strings
    inner = tf.strings.regex_replace(rest, f"{space}+$", "") if right else rest
    length, rest_length, inner_length = (
        tf.strings.length(part, unit="UTF8_CHAR") for part in (strings, rest, inner)
    )
    rows = ragged.row_ids(text.characters)
    position = ragged.positions(text.characters).flat_values - tf.gather(length - rest_length, rows)
    return text.select((position >= 0) & (position < tf.gather(inner_length, rows)))


def prepend(text: AlignedText, content: str) -> AlignedText:
    """Put a string before each text that is not empty; its origin is the first character."""
    first = text.source[:, :1]  # no column in an empty text
    codes = [tf.ones_like(first) * ord(c) for c in content]
    return AlignedText(
        ragged.concat([*codes, text.characters]),
        ragged.concat([first] * len(codes) + [text.source]),
    )


def _forms(text: AlignedText, op: Callable[[tf.Tensor], tf.Tensor]) -> tf.RaggedTensor:
    """Return what a string op makes of each character, ragged [all characters, characters]."""
    unique, index = tf.unique(text.characters.flat_values)
    strings = tf.strings.unicode_encode(unique[:, None], "UTF-8")
    return tf.gather(decode(op(strings)), index)


def _decompose(
    text: AlignedText, form: str, sort: bool = True
) -> tuple[tf.RaggedTensor, tf.Tensor, tf.Tensor]:
    """Return the decomposition of each character.

    Returns:
        code points, ragged [all characters, characters]; which of them begins a decomposition, bool
        [C]; the span of each, int64 [C]: marks are sorted within the span of a base.
    """
    forms = _forms(text, lambda characters: tf_text.normalize_utf8(characters, form))
    mark_class = _combining_class(forms.flat_values)
    # A span ends before the next base, or with its text.
    span = tf.cumsum(tf.cast(mark_class == 0, tf.int64))
    span += tf.gather(ragged.row_ids(text.characters), ragged.row_ids(forms))
    begins = ragged.positions(forms).flat_values == 0
    if not sort:
        return forms, begins, span
    order = tf.argsort(span * 256 + tf.cast(mark_class, tf.int64), stable=True)
    forms = forms.with_flat_values(tf.gather(forms.flat_values, order))
    return forms, tf.gather(begins, order), span


def _combining_class(code: tf.Tensor) -> tf.Tensor:
    """Return the rank by which marks are sorted, 0 for a base, int32 [K]."""
    marks, classes = codepoints.combining_classes()
    index = tf.minimum(tf.searchsorted(marks, code), len(marks) - 1)
    return tf.where(tf.gather(marks, index) == code, tf.gather(classes, index), 0)
