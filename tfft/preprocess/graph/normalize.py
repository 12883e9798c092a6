"""Normalizers as string ops, built from the steps of a description."""

import base64
import re
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
import tensorflow_text as tf_text

from tfft.preprocess.graph import codepoints
from tfft.preprocess.graph.charsmap import CharacterMap
from tfft.utils.errors import UserError

StringOp = Callable[[tf.Tensor], tf.Tensor]


class Normalizer(tf.Module):
    """A description's normalizer: string tensors [N] -> [N].

    Raises:
        UserError: a step has no counterpart here.
    """

    def __init__(self, description: Mapping[str, Any] | None):
        super().__init__()
        self._steps = [_step(step) for step in _flatten(description)]

    def __call__(self, text: tf.Tensor) -> tf.Tensor:
        """The normalised texts."""
        for step in self._steps:
            text = step(text)
        return text


def _flatten(description: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if description is None:
        return []
    if description["type"] == "Sequence":
        return [s for inner in description["normalizers"] for s in _flatten(inner)]
    return [description]


def _step(step: Mapping[str, Any]) -> StringOp:
    kind = step["type"]
    if kind == "Precompiled":
        return CharacterMap(base64.b64decode(step["precompiled_charsmap"]))
    if kind == "BertNormalizer":
        return _bert(step)
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        return lambda text: tf_text.normalize_utf8(text, kind)
    if kind == "StripAccents":
        return replacing(codepoints.combining_marks(), "")
    if kind == "Lowercase":
        return _lower
    if kind == "Replace":
        return _replace(step)
    if kind == "Strip":
        return _strip(step)
    if kind == "Prepend":
        return replacing("^(?s:(.))", re.escape(step["prepend"]) + r"\1", once=True)
    raise UserError(f"tokenizer: the normalizer {kind} has no in-graph form")


def replacing(pattern: str, rewrite: str, once: bool = False) -> StringOp:
    """A function that replaces every match (or the first) of an RE2 pattern."""
    return lambda text: tf.strings.regex_replace(text, pattern, rewrite, replace_global=not once)


def _lower(text: tf.Tensor) -> tf.Tensor:
    # ICU writes a capital sigma at a word's end as a final one; the host maps letter by letter.
    text = tf.strings.regex_replace(text, "Σ", "σ")
    return tf.strings.lower(text, encoding="utf-8")


def _bert(step: Mapping[str, Any]) -> StringOp:
    """Clean, space around ideographs, decompose and drop accents, lower: in that order."""
    functions: list[StringOp] = []
    if step["clean_text"]:
        dropped, spaces = codepoints.bert_cleaned()
        functions += [replacing(f"{dropped}|{codepoints.NUL}", ""), replacing(spaces, " ")]
    if step["handle_chinese_chars"]:
        functions.append(replacing(f"({codepoints.bert_ideographs()})", r" \1 "))
    strip = step["strip_accents"]
    if step["lowercase"] if strip is None else strip:
        functions.append(lambda text: tf_text.normalize_utf8(text, "NFD"))
        functions.append(replacing(codepoints.bert_accents(), ""))
    if step["lowercase"]:
        functions.append(_lower)

    def normalize(text: tf.Tensor) -> tf.Tensor:
        for function in functions:
            text = function(text)
        return text

    return normalize


def _replace(step: Mapping[str, Any]) -> StringOp:
    kind, pattern = next(iter(step["pattern"].items()))
    pattern = re.escape(pattern) if kind == "String" else pattern
    return checked(pattern, step["content"].replace("\\", "\\\\"))


def _strip(step: Mapping[str, Any]) -> StringOp:
    space = codepoints.whitespace()
    sides = [f"^{space}+"] * step["strip_left"] + [f"{space}+$"] * step["strip_right"]
    return replacing("|".join(sides), "") if sides else (lambda text: text)


def checked(pattern: str, rewrite: str) -> StringOp:
    """`replacing`, for a pattern from a file: RE2 must understand it."""
    try:
        tf.strings.regex_replace("", pattern, rewrite)
    except tf.errors.InvalidArgumentError:
        raise UserError(
            f"tokenizer: the pattern {pattern!r} has no in-graph form (RE2 has no look-around)"
        ) from None
    return replacing(pattern, rewrite)
