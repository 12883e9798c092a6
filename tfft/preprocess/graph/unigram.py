"""Unigram in the graph: the best path through each word (Kudo 2018, Subword Regularization).

tensorflow-text's SentencePiece op adds scores in float32 over the complete text, so it breaks ties
(888+8 or 8+888) differently from the host, which adds in float64 word by word: 153 of 135,971 lines
differed. So the path is searched here in float64, for all distinct words of a batch in parallel,
from left to right; the earlier start wins among equal scores.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfft.preprocess.graph import codepoints, ragged
from tfft.preprocess.graph.aligned import AlignedText, AlignedTokens
from tfft.utils.errors import UserError

_UNKNOWN_PENALTY = 10.0  # below the lowest score; the constant of SentencePiece and of the host


class Unigram(tf.Module):
    """A Unigram model as TensorFlow ops: normalized texts [N] -> ids, ragged [N, tokens].

    Args:
        model: the `model` of a tokenizer description.
        pre_tokenizer: its `pre_tokenizer`.

    Raises:
        UserError: the description has options without a counterpart here.
    """

    def __init__(self, model: Mapping[str, Any], pre_tokenizer: Mapping[str, Any] | None):
        super().__init__()
        if model.get("byte_fallback"):
            raise UserError("tokenizer: Unigram with byte_fallback has no in-graph form")
        pieces = [piece for piece, _ in model["vocab"]]
        scores = np.array([score for _, score in model["vocab"]], np.float64)
        self._split_spaces, metaspace = _pre_tokenization(pre_tokenizer)
        self._mark, self._prefix = metaspace["replacement"], metaspace["prepend_scheme"] == "always"
        self._space = codepoints.whitespace()
        self._unknown = model["unk_id"]
        self._unknown_score = float(scores.min() - _UNKNOWN_PENALTY)
        self._scores = tf.constant(scores, tf.float64)
        self._longest = max(map(len, pieces))
        # Reversed, so that the first of equal pieces wins.
        ids = {piece: i for i, piece in reversed(list(enumerate(pieces)))}
        self._table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant(list(ids), tf.string), tf.constant(list(ids.values()), tf.int32)
            ),
            default_value=-1,
        )

    def __call__(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Return the ids of each text."""
        words = self._words(text)
        unique, index = tf.unique(words.flat_values)
        ids = tf.gather(self._encode(unique)[0], index)
        return ragged.merge_inner_axes(words.with_flat_values(ids))

    def aligned(self, text: AlignedText) -> AlignedTokens:
        """Return the ids of each text with their origins."""
        strings = text.strings()
        if self._split_spaces:
            words, begin = ragged.regex_split_with_offsets(strings, f"{self._space}+")
        else:
            words = tf.RaggedTensor.from_tensor(strings[:, None])
            words = ragged.select(words, words.flat_values != "")
            begin = tf.zeros_like(words.flat_values, tf.int64)
        word_first = text.flat_index(ragged.row_ids(words), begin)  # [all words]
        parts = self._parts(words.flat_values)  # [all words, parts]
        unique, index = tf.unique(parts.flat_values)
        ids, lengths = self._encode(unique, with_lengths=True)
        ids, lengths = (
            ragged.merge_inner_axes(parts.with_flat_values(tf.gather(values, index)))
            for values in (ids, lengths)
        )  # [all words, tokens]
        end = ragged.cumulative(lengths).flat_values
        word = ragged.row_ids(ids)
        # A mark that was added has the origin of the first character.
        added = tf.reduce_sum(tf.strings.length(parts, unit="UTF8_CHAR"), axis=1)
        added -= tf.strings.length(words.flat_values, unit="UTF8_CHAR")
        added = tf.gather(added, word)
        first = tf.gather(word_first, word)
        begin = tf.maximum(end - lengths.flat_values - added, 0)
        end = tf.maximum(end - added, 1)
        return text.tokens(
            ragged.merge_inner_axes(words.with_flat_values(ids)),
            first + tf.cast(begin, tf.int64),
            first + tf.cast(end - 1, tf.int64),
        )

    def _words(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Split at whitespace, mark the beginnings, split before each mark."""
        if self._split_spaces:
            words = ragged.regex_split(text, f"{self._space}+")
        else:
            words = tf.RaggedTensor.from_tensor(text[:, None])
            # An empty text has no words.
            words = ragged.select(words, words.flat_values != "")
        parts = self._parts(words.flat_values)
        return ragged.merge_inner_axes(words.with_flat_values(parts))

    def _parts(self, words: tf.Tensor) -> tf.RaggedTensor:
        """Mark the beginning of each word and split before each mark, [W] -> ragged [W, parts]."""
        mark = self._mark
        flat = tf.strings.regex_replace(words, " ", mark)
        if self._prefix:
            # As on the host, a word that begins with the mark gets no second one.
            flat = tf.where(
                tf.strings.substr(flat, 0, len(mark.encode())) == mark, flat, mark + flat
            )
        # A mark begins a word: split before each mark.
        separated = tf.strings.regex_replace(flat, mark, f"{codepoints.SEPARATOR}{mark}")
        return ragged.regex_split(separated, codepoints.SEPARATOR)

    def _encode(
        self, words: tf.Tensor, with_lengths: bool = False
    ) -> tuple[tf.RaggedTensor, tf.RaggedTensor | None]:
        """Return the tokens along the best path of each word [W], and their lengths.

        Args:
            words: strings [W].
            with_lengths: whether to return lengths.

        Returns:
            ids, ragged [W, tokens], and the number of characters of each, or None.
        """
        # `NUL` stands for U+0000 up to here; pieces may contain it.
        words = tf.strings.regex_replace(words, codepoints.NUL, "\0")
        characters = tf.strings.unicode_split(words, "UTF-8")
        count = tf.cast(characters.row_lengths(), tf.int32)
        size = tf.cast(tf.strings.length(characters.flat_values), tf.int32)
        ends = tf.cumsum(characters.with_flat_values(size).to_tensor(), axis=1)
        bounds = tf.pad(ends, [[0, 0], [1, 0]])  # [W, L + 1], bytes before each character
        token, step = self._forward(words, bounds)
        ids, lengths = self._backward(token, step, count, with_lengths)
        # Adjacent unknown tokens become one, as on the host.
        previous = tf.pad(ids, [[0, 0], [1, 0]], constant_values=-1)[:, :-1]
        repeated = (ids == self._unknown) & (previous == self._unknown)
        is_token = (ids >= 0) & ~repeated
        tokens = tf.ragged.boolean_mask(ids, is_token)
        if lengths is None:
            return tokens, None
        ends = tf.cumsum(lengths, axis=1)
        begins = tf.ragged.boolean_mask(ends - lengths, is_token)
        # A token ends where the next one begins.
        ends = ragged.concat([begins[:, 1:], ragged.column(count)])
        return tokens, ends.with_flat_values(ends.flat_values - begins.flat_values)

    def _forward(self, words: tf.Tensor, bounds: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the last token of the best path to each position, and its length; both [L, W].

        Args:
            words: strings [W].
            bounds: bytes before each character, [W, L + 1].
        """
        rows, num_positions = tf.shape(bounds)[0], tf.shape(bounds)[1]
        # Longest first: among equal scores `argmax` takes the first, as the host does.
        lengths = tf.range(self._longest, 0, -1)[None, :]  # [1, M]
        tokens = tf.TensorArray(tf.int32, num_positions - 1)
        steps = tf.TensorArray(tf.int32, num_positions - 1)
        # best_scores[position - M .. position - 1] of each word, the farthest first: [W, M].
        window = tf.concat(
            [
                tf.fill([rows, self._longest - 1], tf.constant(-np.inf, tf.float64)),
                tf.zeros([rows, 1], tf.float64),
            ],
            axis=1,
        )

        def advance(
            position: tf.Tensor, window: tf.Tensor, tokens: tf.TensorArray, steps: tf.TensorArray
        ) -> tuple[Any, ...]:
            # [1, M]. Starts before the word are clipped; their scores in `window` are -inf.
            start = tf.maximum(position - lengths, 0)
            offset = tf.gather(bounds, tf.tile(start, [rows, 1]), batch_dims=1)  # [W, M]
            size = bounds[:, position][:, None] - offset
            piece = tf.strings.substr(tf.tile(words[:, None], [1, self._longest]), offset, size)
            ids = self._table.lookup(piece)
            score = tf.gather(self._scores, tf.maximum(ids, 0))
            # Only a single character can be unknown.
            unknown = (ids < 0) & (lengths == 1)
            score = tf.where(ids >= 0, score, tf.constant(-np.inf, tf.float64))
            score = tf.where(unknown, tf.constant(self._unknown_score, tf.float64), score)
            total = window + score
            best = tf.argmax(total, axis=1, output_type=tf.int32)
            token = tf.gather(ids, best, batch_dims=1)
            tokens = tokens.write(position - 1, tf.where(token < 0, self._unknown, token))
            steps = steps.write(position - 1, self._longest - best)
            best_score = tf.gather(total, best, batch_dims=1)
            # Slide the window by one position: [W, M].
            return position + 1, tf.concat([window[:, 1:], best_score[:, None]], 1), tokens, steps

        _, _, tokens, steps = tf.while_loop(
            lambda position, *_: position < num_positions, advance, (1, window, tokens, steps)
        )
        return tokens.stack(), steps.stack()

    def _backward(
        self, token: tf.Tensor, step: tf.Tensor, count: tf.Tensor, with_lengths: bool
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Follow the tokens [L, W] back from the end of each word.

        Returns:
            ids, int32 [W, steps], -1 before the first token; the characters of each, 0 there, or
            None.
        """
        rows = tf.shape(count)[0]
        columns = tf.range(rows)
        tokens = tf.TensorArray(tf.int32, 0, dynamic_size=True)
        lengths = (tf.TensorArray(tf.int32, 0, dynamic_size=True),) if with_lengths else ()

        def step_back(
            iteration: tf.Tensor, position: tf.Tensor, tokens: tf.TensorArray, *lengths: Any
        ) -> tuple[Any, ...]:
            unfinished = position > 0
            index = tf.stack([tf.maximum(position - 1, 0), columns], axis=1)
            tokens = tokens.write(iteration, tf.where(unfinished, tf.gather_nd(token, index), -1))
            if lengths:
                length = tf.where(unfinished, tf.gather_nd(step, index), 0)
                lengths = (lengths[0].write(iteration, length),)
            return (
                iteration + 1,
                tf.where(unfinished, position - tf.gather_nd(step, index), position),
                tokens,
                *lengths,
            )

        _, _, *arrays = tf.while_loop(
            lambda _, position, *__: tf.reduce_any(position > 0),
            step_back,
            (0, count, tokens, *lengths),
        )
        # Written from the last token to the first: [steps, W] -> [W, steps].
        ids, *lengths = (
            tf.reverse(tf.transpose(tf.reshape(array.stack(), [-1, rows])), [1]) for array in arrays
        )
        return ids, lengths[0] if with_lengths else None


def _pre_tokenization(description: Mapping[str, Any] | None) -> tuple[bool, Mapping[str, Any]]:
    """Return whether words are first split at whitespace, and the Metaspace step."""
    description = description or {"type": "no pre-tokenizer"}
    steps = description["pretokenizers"] if description["type"] == "Sequence" else [description]
    kinds = [step["type"] for step in steps]
    if kinds not in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]):
        raise UserError(f"tokenizer: Unigram after {' and '.join(kinds)} has no in-graph form")
    metaspace = steps[-1]
    if metaspace["prepend_scheme"] == "first" or not metaspace.get("split", True):
        raise UserError("tokenizer: this form of Metaspace has no in-graph form")
    return len(steps) == 2, metaspace
