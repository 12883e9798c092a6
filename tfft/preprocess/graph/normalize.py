"""Normalizers as string ops, built from the steps of a tokenizer description.

Each step also maps aligned texts (`aligned`), for the offsets of tokens.
"""

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import tensorflow as tf
import tensorflow_text as tf_text

from tfft.preprocess.graph import aligned, codepoints
from tfft.preprocess.graph.aligned import AlignedText
from tfft.preprocess.graph.charsmap import CharacterMap
from tfft.utils.errors import UserError

StringOp = Callable[[tf.Tensor], tf.Tensor]


class Step(Protocol):
    """A step of a normalizer, on strings [N] and on aligned texts, with equal characters."""

    def __call__(self, text: tf.Tensor) -> tf.Tensor:
        """Return the strings after this step."""

    def aligned(self, text: AlignedText) -> AlignedText:
        """Return the aligned texts after this step."""


class Normalizer(tf.Module):
    """The normalizer of a tokenizer description: string tensors [N] -> [N].

    Args:
        description: the `normalizer` of the description.

    Raises:
        UserError: a step has no counterpart here.
    """

    def __init__(self, description: Mapping[str, Any] | None):
        super().__init__()
        self._steps = [s for part in _flatten(description) for s in _build_steps(part)]

    def __call__(self, text: tf.Tensor) -> tf.Tensor:
        """Return the normalized texts."""
        for step in self._steps:
            text = step(text)
        return text

    def aligned(self, text: AlignedText) -> AlignedText:
        """Return the normalized texts, each character with its origin."""
        for step in self._steps:
            text = step.aligned(text)
        return text


def _flatten(description: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if description is None:
        return []
    if description["type"] == "Sequence":
        return [s for inner in description["normalizers"] for s in _flatten(inner)]
    return [description]


def _build_steps(step: Mapping[str, Any]) -> list[Step]:
    kind = step["type"]
    if kind == "Precompiled":
        return [CharacterMap(base64.b64decode(step["precompiled_charsmap"]))]
    if kind == "BertNormalizer":
        return _bert_normalizer(step)
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        return [_Unicode(kind)]
    if kind == "StripAccents":
        return [_EachCharacter(replace(codepoints.combining_marks(), ""))]
    if kind == "Lowercase":
        return [_EachCharacter(_lowercase)]
    if kind == "Replace":
        return [_build_replace(step)]
    if kind == "Strip":
        return [_Strip(step["strip_left"], step["strip_right"])]
    if kind == "Prepend":
        return [_Prepend(step["prepend"])]
    raise UserError(f"tokenizer: the normalizer {kind} has no in-graph form")


@dataclass(frozen=True)
class _EachCharacter:
    """A string op that treats each character by itself."""

    op: StringOp

    def __call__(self, text: tf.Tensor) -> tf.Tensor:
        return self.op(text)

    def aligned(self, text: AlignedText) -> AlignedText:
        return aligned.map_characters(text, self.op)


@dataclass(frozen=True)
class _Unicode:
    """A Unicode normalization form."""

    form: str

    def __call__(self, text: tf.Tensor) -> tf.Tensor:
        return tf_text.normalize_utf8(text, self.form)

    def aligned(self, text: AlignedText) -> AlignedText:
        step = aligned.compose if self.form.endswith("C") else aligned.decompose
        return step(text, self.form)


@dataclass(frozen=True)
class _Replace:
    """The replacement of the matches of an RE2 pattern by a string."""

    pattern: str
    content: str

    def __call__(self, text: tf.Tensor) -> tf.Tensor:
        # RE2 reads a backslash in the rewrite as a reference to a group.
        return replace(self.pattern, self.content.replace("\\", "\\\\"))(text)

    def aligned(self, text: AlignedText) -> AlignedText:
        return aligned.replace_matches(text, self.pattern, self.content)


@dataclass(frozen=True)
class _Strip:
    """The removal of whitespace on one side or both."""

    left: bool
    right: bool

    def __call__(self, text: tf.Tensor) -> tf.Tensor:
        space = codepoints.whitespace()
        sides = [f"^{space}+"] * self.left + [f"{space}+$"] * self.right
        return replace("|".join(sides), "")(text) if sides else text

    def aligned(self, text: AlignedText) -> AlignedText:
        return aligned.strip(text, self.left, self.right)


@dataclass(frozen=True)
class _Prepend:
    """A string before each text; an empty text stays empty, as on the host."""

    content: str

    def __call__(self, text: tf.Tensor) -> tf.Tensor:
        # `s` lets the dot match a line break.
        return replace("^(?s:(.))", re.escape(self.content) + r"\1", once=True)(text)

    def aligned(self, text: AlignedText) -> AlignedText:
        return aligned.prepend(text, self.content)


def replace(pattern: str, rewrite: str, once: bool = False) -> StringOp:
    r"""Return a function that replaces the matches of an RE2 pattern.

    Args:
        pattern: in RE2's syntax.
        rewrite: replacement, with \1 for the first group.
        once: replace only the first match.
    """
    return lambda text: tf.strings.regex_replace(text, pattern, rewrite, replace_global=not once)


def _lowercase(text: tf.Tensor) -> tf.Tensor:
    # At the end of a word ICU lowercases a capital sigma to a final sigma; the host does not.
    text = tf.strings.regex_replace(text, "Σ", "σ")
    return tf.strings.lower(text, encoding="utf-8")


def _bert_normalizer(step: Mapping[str, Any]) -> list[Step]:
    """Return BERT's steps: clean, isolate ideographs, strip accents, lowercase, in that order."""
    steps: list[Step] = []
    if step["clean_text"]:
        dropped, spaces = codepoints.bert_cleaned()
        # Clean-up drops U+0000, for which `NUL` stands.
        steps.append(_EachCharacter(replace(f"{dropped}|{codepoints.NUL}", "")))
        steps.append(_EachCharacter(replace(spaces, " ")))
    if step["handle_chinese_chars"]:
        steps.append(_EachCharacter(replace(f"({codepoints.bert_ideographs()})", r" \1 ")))
    strip = step["strip_accents"]
    # If unset, accents are stripped exactly where the text is lowercased, as in BERT's code.
    if step["lowercase"] if strip is None else strip:
        # Only decomposition makes accents separate characters.
        steps += [_Unicode("NFD"), _EachCharacter(replace(codepoints.bert_accents(), ""))]
    if step["lowercase"]:
        steps.append(_EachCharacter(_lowercase))
    return steps


def _build_replace(step: Mapping[str, Any]) -> _Replace:
    """Build the replacement of a pattern from a file.

    Raises:
        UserError: RE2 does not understand the pattern.
    """
    kind, pattern = next(iter(step["pattern"].items()))
    result = _Replace(re.escape(pattern) if kind == "String" else pattern, step["content"])
    try:
        # The op compiles the pattern only when it runs, so run it once.
        result(tf.constant(""))
    except tf.errors.InvalidArgumentError:
        raise UserError(
            f"tokenizer: the pattern {pattern!r} has no in-graph form (RE2 has no look-around)"
        ) from None
    return result
