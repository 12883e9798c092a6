"""Normalizers as string ops, built from the steps of a tokenizer description."""

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
    """The normalizer of a tokenizer description: string tensors [N] -> [N].

    Args:
        description: the `normalizer` of the description.

    Raises:
        UserError: a step has no counterpart here.
    """

    def __init__(self, description: Mapping[str, Any] | None):
        super().__init__()
        self._steps = [_build_step(step) for step in _flatten(description)]

    def __call__(self, text: tf.Tensor) -> tf.Tensor:
        """Return the normalized texts."""
        for step in self._steps:
            text = step(text)
        return text


def _flatten(description: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if description is None:
        return []
    if description["type"] == "Sequence":
        return [s for inner in description["normalizers"] for s in _flatten(inner)]
    return [description]


def _build_step(step: Mapping[str, Any]) -> StringOp:
    kind = step["type"]
    if kind == "Precompiled":
        return CharacterMap(base64.b64decode(step["precompiled_charsmap"]))
    if kind == "BertNormalizer":
        return _bert_normalizer(step)
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        return lambda text: tf_text.normalize_utf8(text, kind)
    if kind == "StripAccents":
        return replace(codepoints.combining_marks(), "")
    if kind == "Lowercase":
        return _lowercase
    if kind == "Replace":
        return _replace(step)
    if kind == "Strip":
        return _strip(step)
    if kind == "Prepend":
        # An empty text stays empty, as on the host; `s` lets the dot match a line break.
        return replace("^(?s:(.))", re.escape(step["prepend"]) + r"\1", once=True)
    raise UserError(f"tokenizer: the normalizer {kind} has no in-graph form")


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


def _bert_normalizer(step: Mapping[str, Any]) -> StringOp:
    """Return BERT's steps: clean, isolate ideographs, strip accents, lowercase, in that order."""
    functions: list[StringOp] = []
    if step["clean_text"]:
        dropped, spaces = codepoints.bert_cleaned()
        # Clean-up drops U+0000, for which `NUL` stands.
        functions += [replace(f"{dropped}|{codepoints.NUL}", ""), replace(spaces, " ")]
    if step["handle_chinese_chars"]:
        functions.append(replace(f"({codepoints.bert_ideographs()})", r" \1 "))
    strip = step["strip_accents"]
    # If unset, accents are stripped exactly where the text is lowercased, as in BERT's code.
    if step["lowercase"] if strip is None else strip:
        # Only decomposition makes accents separate characters.
        functions.append(lambda text: tf_text.normalize_utf8(text, "NFD"))
        functions.append(replace(codepoints.bert_accents(), ""))
    if step["lowercase"]:
        functions.append(_lowercase)

    def normalize(text: tf.Tensor) -> tf.Tensor:
        for function in functions:
            text = function(text)
        return text

    return normalize


def _replace(step: Mapping[str, Any]) -> StringOp:
    kind, pattern = next(iter(step["pattern"].items()))
    pattern = re.escape(pattern) if kind == "String" else pattern
    # RE2 reads a backslash in the rewrite as a reference to a group.
    return checked_replace(pattern, step["content"].replace("\\", "\\\\"))


def _strip(step: Mapping[str, Any]) -> StringOp:
    space = codepoints.whitespace()
    sides = [f"^{space}+"] * step["strip_left"] + [f"{space}+$"] * step["strip_right"]
    return replace("|".join(sides), "") if sides else (lambda text: text)


def checked_replace(pattern: str, rewrite: str) -> StringOp:
    """Return `replace` for a pattern from a file.

    Raises:
        UserError: RE2 does not understand the pattern.
    """
    try:
        # The op compiles the pattern only when it runs, so run it once.
        tf.strings.regex_replace("", pattern, rewrite)
    except tf.errors.InvalidArgumentError:
        raise UserError(
            f"tokenizer: the pattern {pattern!r} has no in-graph form (RE2 has no look-around)"
        ) from None
    return replace(pattern, rewrite)
