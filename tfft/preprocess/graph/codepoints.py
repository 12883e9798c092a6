r"""Sets of characters, read off the host tokenizer itself.

RE2, ICU and the host library come with different Unicode tables (the host's clean-up drops
characters that its table does not assign), so "\\p{P}" differs between the two sides. Asking the
host about each code point, once, gives equal sets.
"""

import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache

from tokenizers import Regex, normalizers, pre_tokenizers

# Noncharacters, which Unicode reserves for internal use.
SEPARATOR = "\ufdd0"  # separates two parts
NUL = "\ufdd1"  # stands for U+0000, at which some string ops end a text

_SURROGATES = range(0xD800, 0xE000)
# No letter, digit, space or punctuation is assigned above the supplementary ideographs.
_TEXT_PLANES = 0x40000


def _characters(stop: int = 0x110000) -> list[str]:
    below, above = range(0x80, _SURROGATES.start), range(_SURROGATES.stop, stop)
    return [*map(chr, below), *map(chr, above)]


def normalized_forms(normalize: Callable[[str], str], stop: int = 0x110000) -> dict[str, str]:
    """Return what a normalizer makes of each single character that it changes.

    Args:
        normalize: must treat the characters on both sides of U+0001 separately; of the letter "a"
            instead if it changes U+0001.
        stop: code points below it are tried.
    """
    characters = _characters(stop)
    # No form contains a control character. A normalizer that drops those has no form with an "a".
    mark = "\x01" if normalize("\x01") == "\x01" else "a"
    parts = normalize(mark + mark.join(characters) + mark).split(mark)[1:-1]
    if len(parts) != len(characters):  # a form contains the mark itself
        parts = [normalize(c) for c in characters]
    table = {c: form for c, form in zip(characters, parts, strict=True) if form != c}
    # ASCII holds the mark, so its characters are tried one by one.
    for c in map(chr, range(0x80)):
        if (form := normalize(c)) != c:
            table[c] = form
    return table


def char_class(characters: Iterable[str]) -> str:
    """Return an RE2 character class of exactly these characters.

    Raises:
        ValueError: there are none.
    """
    codes = sorted({ord(c) for c in characters})
    if not codes:
        raise ValueError("A character class must hold at least one character. Received: none")
    ranges, start = [], codes[0]
    for code, next_code in zip(codes, [*codes[1:], None], strict=True):
        if next_code != code + 1:
            ranges.append((start, code))
            start = next_code
    return "[" + "".join(_range(low, high) for low, high in ranges) + "]"


def _range(low: int, high: int) -> str:
    first = f"\\x{{{low:X}}}"
    return first if low == high else f"{first}-\\x{{{high:X}}}"


def _bert(**options: bool) -> Callable[[str], str]:
    settings = dict.fromkeys(("clean_text", "handle_chinese_chars", "strip_accents", "lowercase"))
    settings = {name: options.get(name, False) for name in settings}
    return normalizers.BertNormalizer(**settings).normalize_str


@lru_cache(maxsize=1)
def bert_cleaned() -> tuple[str, str]:
    """Return the characters that BERT's clean-up drops, and those that it replaces by a space."""
    table = normalized_forms(_bert(clean_text=True))
    return (
        char_class(c for c, form in table.items() if form == ""),
        char_class(c for c, form in table.items() if form == " "),
    )


@lru_cache(maxsize=1)
def bert_ideographs() -> str:
    """Return the characters that BERT surrounds with spaces."""
    return char_class(normalized_forms(_bert(handle_chinese_chars=True), _TEXT_PLANES))


@lru_cache(maxsize=1)
def bert_accents() -> str:
    """Return the non-spacing marks that BERT drops after canonical decomposition."""
    table = normalized_forms(_bert(strip_accents=True))
    return char_class(c for c, form in table.items() if form == "")


@lru_cache(maxsize=1)
def combining_marks() -> str:
    """Return the marks that the StripAccents normalizer drops."""
    table = normalized_forms(normalizers.StripAccents().normalize_str)
    return char_class(c for c, form in table.items() if form == "")


@lru_cache(maxsize=1)
def combining_classes() -> tuple[list[int], list[int]]:
    """Return the marks that canonical decomposition sorts, ascending, and the rank of each.

    The ranks from 1 on are in the order of the canonical combining classes (Unicode Standard Annex
    15, D108).
    """
    marks = sorted(normalized_forms(normalizers.StripAccents().normalize_str))
    known = {unicodedata.combining(c): c for c in reversed(marks)}  # the oldest of each class
    known.pop(0, None)
    decompose = normalizers.NFD().normalize_str

    def is_moved(first: str, second: str) -> bool:
        return decompose(first + second) == second + first != first + second

    ranks = {}
    for mark in marks:
        # A mark is moved behind those of a lower class and before those of a higher class.
        behind = sum(is_moved(mark, other) for other in known.values())
        if behind or any(is_moved(other, mark) for other in known.values()):
            ranks[ord(mark)] = 1 + behind
    return list(ranks), list(ranks.values())


@lru_cache(maxsize=1)
def bert_splits() -> tuple[str, str]:
    """Return whitespace, and the punctuation that BERT's pre-tokenizer isolates."""
    return _spaces_and_isolated(pre_tokenizers.BertPreTokenizer())


@lru_cache(maxsize=1)
def whitespace() -> str:
    """Return the characters at which WhitespaceSplit splits."""
    return _spaces_and_isolated(pre_tokenizers.WhitespaceSplit())[0]


@lru_cache(maxsize=4)
def characters_matching(pattern: str) -> str:
    """Return the characters that a regular expression of the host (Oniguruma) matches."""
    splitter = pre_tokenizers.Split(Regex(pattern), "removed")
    # A text that matches completely leaves no piece.
    ascii_matches = [c for c in map(chr, range(0x80)) if not splitter.pre_tokenize_str(c)]
    # A character that matches is removed from between two filler characters, which do not match.
    filler = "a" if "a" not in ascii_matches else "\u0001"
    characters = _characters(_TEXT_PLANES)
    text = filler + filler.join(characters) + filler
    remains = bytearray(len(text))
    for _, (start, stop) in splitter.pre_tokenize_str(text):
        remains[start:stop] = b"\1" * (stop - start)
    matches = [c for index, c in enumerate(characters) if not remains[2 * index + 1]]
    return char_class([*ascii_matches, *matches])


def _spaces_and_isolated(splitter: pre_tokenizers.PreTokenizer) -> tuple[str, str]:
    """Return the characters removed from between two letters, and those that become a piece."""
    characters = [*map(chr, range(0x80)), *_characters(_TEXT_PLANES)]
    text = "a" + "a".join(characters) + "a"
    # Character i is at 2 * i + 1, between two letters.
    remains, is_single = bytearray(len(text)), bytearray(len(text))
    for _, (start, stop) in splitter.pre_tokenize_str(text):
        remains[start:stop] = b"\1" * (stop - start)
        if stop - start == 1:
            is_single[start] = 1
    spaces = [c for index, c in enumerate(characters) if not remains[2 * index + 1]]
    isolated = [c for index, c in enumerate(characters) if is_single[2 * index + 1]]
    # `char_class` refuses an empty set, and WhitespaceSplit isolates nothing.
    return char_class(spaces), char_class(isolated or spaces)
