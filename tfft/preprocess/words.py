"""Words of raw texts, and the tokens that begin them, on the host.

A word is a maximal run of letters, marks, numbers and underscores, or one other character that is
not white space: "U.S." is four words, "don't" is three. Scripts without spaces have no words to be
told by their characters: each ideograph or kana is a word. Entities are sequences of words, and the
first token of a word stands for it.

The classes of characters are those of `unicodedata`. `graph.words` holds them as a table, so both
sides agree on every code point, whatever Unicode tables the server of a model has.
"""

import sys
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

SPACE, WORD, OTHER = range(3)  # classes of characters
# Hiragana and katakana; CJK ideographs, in the blocks that BERT separates.
_IDEOGRAPHS = (
    (0x3040, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)


@lru_cache(maxsize=1)
def character_classes() -> tuple[np.ndarray, np.ndarray]:
    """Return the classes of all code points, in R ranges of one class each.

    Returns:
        The first code point of each range, ascending from 0, and its class, both int32 [R].
    """
    characters = list(map(chr, range(sys.maxunicode + 1)))
    categories = "".join(map(unicodedata.category, characters))  # two letters each
    groups = np.frombuffer(categories.encode("ascii"), np.uint8)[::2]
    is_word = np.isin(groups, [ord(group) for group in "LMN"])
    is_word[[ord(c) for c in "_\u00ad\u200c\u200d"]] = True  # soft hyphen, joiners
    for first, last in _IDEOGRAPHS:
        is_word[first : last + 1] = False
    is_space = np.fromiter(map(str.isspace, characters), bool, len(characters))
    classes = np.where(is_word, WORD, np.where(is_space, SPACE, OTHER)).astype(np.int32)
    firsts = np.flatnonzero(np.diff(classes, prepend=-1))
    return firsts.astype(np.int32), classes[firsts]


def word_starts(text: str) -> list[int]:
    """Return the bytes of UTF-8 at which the words of a text begin, ascending.

    Raises:
        UnicodeEncodeError: the text holds a lone surrogate.
    """
    classes, bounds = _characters(text)
    is_word = classes == WORD
    begins = is_word.copy()
    begins[1:] &= ~is_word[:-1]
    return bounds[:-1][begins | (classes == OTHER)].tolist()


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return the first character of each word, and one after its last.

    Raises:
        UnicodeEncodeError: the text holds a lone surrogate.
    """
    classes, _ = _characters(text)
    begins, ends = classes != SPACE, classes != SPACE
    within = (classes[1:] == WORD) & (classes[:-1] == WORD)
    begins[1:] &= ~within
    ends[:-1] &= ~within
    firsts, lasts = np.flatnonzero(begins).tolist(), np.flatnonzero(ends).tolist()
    return [(first, last + 1) for first, last in zip(firsts, lasts, strict=True)]


def strip_offsets(
    text: str, starts: Sequence[int], ends: Sequence[int], sequence: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the offsets of tokens without the white space at their ends, both int32 [T].

    The tokens of many vocabularies (GPT-2, T5) include the space before a word. A token of white
    space alone becomes empty. What is not a token of `text` has the offsets 0.

    Args:
        text: the first text of the row.
        starts: first byte of each token, [T].
        ends: one after its last byte, [T].
        sequence: 0 for a token of `text`, [T].

    Raises:
        UnicodeEncodeError: the text holds a lone surrogate.
    """
    classes, bounds = _characters(text)
    is_visible = classes != SPACE
    # Bounds beyond the text serve tokens that no visible character follows or precedes.
    visible_starts = np.append(bounds[:-1][is_visible], np.iinfo(np.int32).max)
    visible_ends = np.append(0, bounds[1:][is_visible])
    is_text = np.asarray(sequence) == 0
    begin, end = (np.where(is_text, offsets, 0) for offsets in (starts, ends))
    begin = np.minimum(visible_starts[np.searchsorted(visible_starts, begin)], end)
    end = np.maximum(visible_ends[np.searchsorted(visible_ends, end, side="right") - 1], begin)
    return begin.astype(np.int32), end.astype(np.int32)


def first_tokens(
    starts: Sequence[int] | np.ndarray,
    ends: Sequence[int] | np.ndarray,
    sequence: Sequence[int] | np.ndarray,
    word_starts: Sequence[int],
) -> np.ndarray:
    """Return which tokens of a row are the first of their word, bool [T].

    A word has no first token if it was cut off, if the tokenizer drops it, or if a token of an
    earlier word reaches over it. The arguments are those of `words_of_tokens`.
    """
    words = words_of_tokens(starts, ends, sequence, word_starts)
    positions = np.flatnonzero(words >= 0)
    _, indices = np.unique(words[positions], return_index=True)
    is_first = np.zeros(len(words), bool)
    is_first[positions[indices]] = True
    return is_first


def words_of_tokens(
    starts: Sequence[int] | np.ndarray,
    ends: Sequence[int] | np.ndarray,
    sequence: Sequence[int] | np.ndarray,
    word_starts: Sequence[int],
) -> np.ndarray:
    """Return the word of each token of a row, int32 [T]; -1 where it has none.

    A token belongs to the last word that does not start after it. Special tokens, tokens of a
    second text and tokens of an empty range belong to none.

    Args:
        starts: first byte of each token without white space (`strip_offsets`), [T].
        ends: one after its last byte, [T].
        sequence: 0 for a token of the text, 1 for one of a second text, -1 for special tokens, [T].
        word_starts: bytes at which words begin, ascending: those of `word_starts`, or those of data
            whose words are given.
    """
    begin = np.asarray(starts, np.int64)
    words = np.searchsorted(np.asarray(word_starts, np.int64), begin, side="right") - 1
    has_word = (np.asarray(sequence) == 0) & (begin < np.asarray(ends)) & (words >= 0)
    return np.where(has_word, words, -1).astype(np.int32)


def tokens_of_words(
    starts: Sequence[int] | np.ndarray,
    ends: Sequence[int] | np.ndarray,
    sequence: Sequence[int] | np.ndarray,
    word_starts: Sequence[int],
) -> np.ndarray:
    """Return the first token of each word of a row, int32 [words].

    A word without a first token has -1. But where a token of an earlier word reaches over its
    beginning, it has -2 - t, where t is the first token of that word: the two are read as one.
    The arguments are those of `words_of_tokens`.
    """
    words = words_of_tokens(starts, ends, sequence, word_starts)
    result = np.full(len(word_starts), -1, np.int32)
    positions = np.flatnonzero(words >= 0)
    # The last one written is the first token.
    result[words[positions][::-1]] = positions[::-1]
    firsts = result.copy()
    for word in np.flatnonzero(result < 0):
        start = word_starts[word]
        over = positions[
            (np.asarray(starts)[positions] < start) & (np.asarray(ends)[positions] > start)
        ]
        if len(over):
            result[word] = -2 - firsts[words[over[0]]]
    return result


def _characters(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the class of each character, [C], and the byte bounds of all, [C + 1]."""
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
    firsts, classes = character_classes()
    # The last code points of one, two and three bytes.
    sizes = 1 + sum((codes > last).astype(np.int64) for last in (0x7F, 0x7FF, 0xFFFF))
    bounds = np.append(0, np.cumsum(sizes))
    return classes[np.searchsorted(firsts, codes, side="right") - 1], bounds
