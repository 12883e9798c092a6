"""A complete tokenizer as one TensorFlow module: from raw texts to a model's inputs."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
from tokenizers import Tokenizer

from tfft.preprocess.graph import codepoints, normalize, offsets, pack, ragged, words
from tfft.preprocess.graph.aligned import AlignedText
from tfft.preprocess.graph.bpe import ByteLevelBPE
from tfft.preprocess.graph.unigram import Unigram
from tfft.preprocess.graph.wordpiece import WordPiece
from tfft.preprocess.template import templates
from tfft.preprocess.windows import Windows
from tfft.utils.errors import UserError

MODELS = {"WordPiece": WordPiece, "BPE": ByteLevelBPE, "Unigram": Unigram}


class GraphTokenizer(tf.Module):
    """A tokenizer description as TensorFlow ops; it can be saved within a SavedModel.

    Args:
        spec: the description (`tokenizer.json`).
        max_length: the most tokens of a row, special ones included.
        pad_id: fills up shorter rows.
        windows: how long rows are divided, for `located`; None: they are truncated.

    Raises:
        UserError: a part of the description has no counterpart in the graph.
    """

    def __init__(self, spec: str, max_length: int, pad_id: int, windows: Windows | None = None):
        super().__init__()
        description = _parse_as_host(spec)
        self._max_length, self._pad_id, self._windows = max_length, pad_id, windows
        self._normalize = normalize.Normalizer(description["normalizer"])
        self._added = _AddedTokens(description["added_tokens"])
        self._pieces = _build_model(description)
        self._single, self._pair = templates(description["post_processor"])
        self._trim = offsets.Trimmer(description["post_processor"], description["model"])

    def __call__(self, text: tf.Tensor, text_pair: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """Tokenise strings [B]: `{token_ids, padding_mask, segment_ids}`, int32 [B, T]."""
        a = self._ids(text)
        b = None if text_pair is None else self._ids(text_pair)
        template = self._single if b is None else self._pair
        return pack.pack(a, b, template, self._max_length, self._pad_id)

    def located(self, *columns: tf.Tensor) -> dict[str, tf.Tensor]:
        """Tokenise the windows of rows and locate their tokens: `TextInputs.located_batch`.

        Args:
            columns: strings [B]; two columns for pairs.

        Returns:
            Both results of `TextInputs.located_batch` in one; `text` is cut after the last token of
            the last window.

        Raises:
            UserError: a part of the tokenizer has no form with offsets.
        """
        *firsts, text = columns
        ids, (starts, ends) = self._ids_and_offsets(text)
        first_ids = self._ids(firsts[0])[:, : self._windows.first] if firsts else None
        plan = pack.plan_windows(
            tf.cast(ids.row_lengths(), tf.int32),
            None if first_ids is None else tf.cast(first_ids.row_lengths(), tf.int32),
            self._windows,
        )
        # Only up to the last token: a long text would pad all rows of the batch to its characters.
        lengths = tf.math.unsorted_segment_max(plan.ends, plan.rows, tf.shape(text)[0])
        ids, starts, ends = (
            values.to_tensor()[:, : tf.reduce_max(lengths, keepdims=True)[0]]
            for values in (ids, starts, ends)
        )
        is_token = tf.sequence_mask(lengths, tf.shape(ids)[1])
        ends = tf.where(is_token, ends, 0)
        size = tf.reduce_max(ends, axis=1)
        text = tf.strings.substr(text, tf.zeros_like(size), size)
        sequence = tf.where(is_token, 0, -1)
        starts, ends = words.strip_offsets(text, starts, ends, sequence)
        tokens = {"ids": ids, "starts": starts, "ends": ends}
        if not firsts:
            tokens["first"] = words.first_tokens(starts, ends, sequence, words.word_starts(text))
        template = self._pair if firsts else self._single
        batch = pack.pack_windows(plan, tokens, first_ids, template, self._pad_id)
        return {**batch, "row": plan.rows, "text": text}

    def _ids_and_offsets(
        self, raw: tf.Tensor
    ) -> tuple[tf.RaggedTensor, tuple[tf.RaggedTensor, tf.RaggedTensor]]:
        """Return ids, starts and ends, all ragged [B, tokens]."""
        text = _clean(raw)
        if self._added:
            parts = self._added.split(text)
            token = self._added.lookup(parts.flat_values)
        else:
            parts = tf.RaggedTensor.from_tensor(text[:, None])
            token = tf.fill(tf.shape(text), -1)
        flat, is_text = parts.flat_values, token < 0
        # The parts partition the text. [all parts]: the first character of each.
        size = tf.strings.length(flat, unit="UTF8_CHAR")
        ends = ragged.cumulative(parts.with_flat_values(size)).flat_values
        begins = ends - size
        plain = self._pieces.aligned(
            self._normalize.aligned(AlignedText.from_strings(tf.where(is_text, flat, "")))
        )  # [all parts, tokens]
        base = tf.gather(begins, ragged.row_ids(plain.ids))

        def merge(values: tf.Tensor, of_added: tf.Tensor) -> tf.RaggedTensor:
            """Join what belongs to the tokens of texts and to added tokens: ragged [B, tokens]."""
            added = tf.RaggedTensor.from_row_lengths(
                tf.boolean_mask(of_added, ~is_text), tf.cast(~is_text, tf.int64), validate=False
            )
            # For each part one of the two is empty.
            merged = ragged.concat([plain.ids.with_flat_values(values), added])
            return ragged.merge_inner_axes(parts.with_flat_values(merged))

        ids = merge(plain.ids.flat_values, token)
        starts = merge(plain.first.flat_values + base, begins)
        ends = merge(plain.last.flat_values + base + 1, ends)
        if self._trim:
            spaces = [
                merge(of_text, of_added).flat_values
                for of_text, of_added in zip(
                    self._trim.spaces(plain.ids.flat_values),
                    self._trim.spaces_of_strings(flat),
                    strict=True,
                )
            ]
            is_first = ragged.positions(ids).flat_values == 0
            starts, ends = (
                ids.with_flat_values(values)
                for values in self._trim(starts.flat_values, ends.flat_values, spaces, is_first)
            )
        return ids, (offsets.to_bytes(raw, starts), offsets.to_bytes(raw, ends))

    def _ids(self, text: tf.Tensor) -> tf.RaggedTensor:
        text = _clean(text)
        if not self._added:
            return self._pieces(self._normalize(text))
        parts = self._added.split(text)
        token = self._added.lookup(parts.flat_values)
        is_text = token < 0
        # An added token is an empty text here, which has no ids.
        plain = self._pieces(self._normalize(tf.where(is_text, parts.flat_values, "")))
        added = tf.RaggedTensor.from_row_lengths(
            tf.boolean_mask(token, ~is_text), tf.cast(~is_text, tf.int64), validate=False
        )
        # For each part one of the two is empty.
        ids = ragged.concat([plain, added])
        return ragged.merge_inner_axes(parts.with_flat_values(ids))


def _clean(text: tf.Tensor) -> tf.Tensor:
    # Clients may send any bytes: replace what is not UTF-8 by U+FFFD instead of raising.
    text = tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace")
    # Some string ops end a text at U+0000.
    return tf.strings.regex_replace(text, r"\x{0}", codepoints.NUL)


def _parse_as_host(spec: str) -> dict[str, Any]:
    """Parse a description with the numbers that the host computes with.

    The host's JSON reader is off by one in the last place for about one decimal in fifty
    (serde_json without `float_roundtrip`), which decides between two paths of equal score.
    """
    return json.loads(Tokenizer.from_str(spec).to_str())


class _AddedTokens(tf.Module):
    """Tokens such as [SEP] that are split from the raw text before any other step."""

    def __init__(self, tokens: Sequence[Mapping[str, Any]]):
        super().__init__()
        for token in tokens:
            if token["single_word"]:
                raise UserError(
                    f"tokenizer: the added token {token['content']!r} with single_word has no "
                    "in-graph form"
                )
            # The host matches normalized tokens in the normalized text, this class in the raw text.
            # Both agree if lowercasing does not change the token.
            if token["normalized"] and token["content"] != token["content"].lower():
                raise UserError(
                    f"tokenizer: the normalized added token {token['content']!r} has no "
                    "in-graph form"
                )
        self._tokens = list(tokens)
        if not tokens:
            return
        # The longest first, so that it wins over its own prefix, as on the host.
        ordered = sorted(tokens, key=lambda t: -len(t["content"]))
        space = codepoints.whitespace()
        self._pattern = "|".join(
            (f"{space}*" if t["lstrip"] else "")
            + re.escape(t["content"])
            + (f"{space}*" if t["rstrip"] else "")
            for t in ordered
        )
        self._strip = f"^{space}+|{space}+$"
        self._table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant([t["content"] for t in ordered]),
                tf.constant([t["id"] for t in ordered], tf.int32),
            ),
            default_value=-1,
        )
        self._may_strip = any(t["lstrip"] or t["rstrip"] for t in tokens)

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def split(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Split texts [N] at the added tokens, which become parts: ragged [N, parts]."""
        return ragged.regex_split(text, self._pattern, self._pattern)

    def lookup(self, parts: tf.Tensor) -> tf.Tensor:
        """Return the id of each part that is an added token, else -1."""
        ids = self._table.lookup(parts)
        if not self._may_strip:
            return ids
        # With lstrip or rstrip, a part includes the whitespace next to its token.
        stripped = tf.strings.regex_replace(parts, self._strip, "")
        return tf.where(ids >= 0, ids, self._table.lookup(stripped))


def _build_model(description: Mapping[str, Any]) -> tf.Module:
    """Build the model of a description, including its pre-tokenizer."""
    model = description["model"]
    kind = model["type"]
    if kind not in MODELS:
        raise UserError(f"tokenizer: the model {kind} has no in-graph form")
    return MODELS[kind](model, description["pre_tokenizer"])
