"""Sets of characters, read off the host tokenizer itself.

RE2, ICU and the host library come with different Unicode tables (the host's clean-up drops
characters that were unassigned in its own), so "\\p{P}" does not mean the same on both sides.
Asking the host about every code point, once, does.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache

from tokenizers import Regex, normalizers, pre_tokenizers

# Noncharacters, which Unicode keeps out of text, for marks of our own within it.
CUT = "\ufdd0"  # between two parts
NUL = "\ufdd1"  # in place of U+0000, at which some string ops end a text

_SURROGATES = range(0xD800, 0xE000)
# No letter, digit, space or punctuation is assigned above the supplementary ideographs.
_TEXT_PLANES = 0x40000


def _characters(stop: int = 0x110000) -> list[str]:
    below, above = range(0x80, _SURROGATES.start), range(_SURROGATES.stop, stop)
    return [*map(chr, below), *map(chr, above)]


def images(normalize: Callable[[str], str], stop: int = 0x110000) -> dict[str, str]:
    """What a normalizer makes of each single character, where that is not itself.

    `normalize` must treat characters on both sides of U+0001 apart, or of the letter "a" if it does
    not leave U+0001 alone.
    """
    characters = _characters(stop)
    # A control character is in no image; a normalizer that drops it makes no image with an "a".
    mark = "\x01" if normalize("\x01") == "\x01" else "a"
    parts = normalize(mark + mark.join(characters) + mark).split(mark)[1:-1]
    if len(parts) != len(characters):  # an image holds the mark itself
        parts = [normalize(c) for c in characters]
    table = {c: image for c, image in zip(characters, parts, strict=True) if image != c}
    for c in map(chr, range(0x80)):
        if (image := normalize(c)) != c:
            table[c] = image
    return table


def char_class(characters: Iterable[str]) -> str:
    """An RE2 character class of exactly these characters; they must not be none."""
    codes = sorted({ord(c) for c in characters})
    if not codes:
        raise ValueError("A character class must hold a character. Received: none")
    ranges, start = [], codes[0]
    for here, after in zip(codes, [*codes[1:], None], strict=True):
        if after != here + 1:
            ranges.append((start, here))
            start = after
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
    """The characters that BERT's clean-up drops, and those that it turns into a space."""
    table = images(_bert(clean_text=True))
    return (
        char_class(c for c, image in table.items() if image == ""),
        char_class(c for c, image in table.items() if image == " "),
    )


@lru_cache(maxsize=1)
def bert_ideographs() -> str:
    """The characters that BERT sets apart by spaces."""
    return char_class(images(_bert(handle_chinese_chars=True)))


@lru_cache(maxsize=1)
def bert_accents() -> str:
    """The non-spacing marks that BERT drops after canonical decomposition."""
    table = images(_bert(strip_accents=True))
    return char_class(c for c, image in table.items() if image == "")


@lru_cache(maxsize=1)
def combining_marks() -> str:
    """The marks that the StripAccents normalizer drops."""
    table = images(normalizers.StripAccents().normalize_str)
    return char_class(c for c, image in table.items() if image == "")


@lru_cache(maxsize=1)
def bert_splits() -> tuple[str, str]:
    """Whitespace, and the punctuation that BERT's pre-tokenizer sets apart."""
    return _spaces_and_isolated(pre_tokenizers.BertPreTokenizer())


@lru_cache(maxsize=1)
def whitespace() -> str:
    """The characters at which WhitespaceSplit splits."""
    return _spaces_and_isolated(pre_tokenizers.WhitespaceSplit())[0]


@lru_cache(maxsize=4)
def matching(pattern: str) -> str:
    """The characters that a regular expression of the host's (Oniguruma) matches."""
    splitter = pre_tokenizers.Split(Regex(pattern), "removed")
    ascii_found = [c for c in map(chr, range(0x80)) if not splitter.pre_tokenize_str(c)]
    # Between two of a character that does not match itself, one that matches leaves a gap.
    filler = "a" if "a" not in ascii_found else "\u0001"
    characters = _characters(_TEXT_PLANES)
    text = filler + filler.join(characters) + filler
    kept = bytearray(len(text))
    for _, (start, stop) in splitter.pre_tokenize_str(text):
        kept[start:stop] = b"\1" * (stop - start)
    found = [c for at, c in enumerate(characters) if not kept[2 * at + 1]]
    return char_class([*ascii_found, *found])


def _spaces_and_isolated(splitter: pre_tokenizers.PreTokenizer) -> tuple[str, str]:
    """Characters that vanish between two letters, and those that become a piece of their own."""
    characters = [*map(chr, range(0x80)), *_characters(_TEXT_PLANES)]
    text = "a" + "a".join(characters) + "a"
    kept, alone = bytearray(len(text)), bytearray(len(text))
    for _, (start, stop) in splitter.pre_tokenize_str(text):
        kept[start:stop] = b"\1" * (stop - start)
        if stop - start == 1:
            alone[start] = 1
    spaces = [c for at, c in enumerate(characters) if not kept[2 * at + 1]]
    isolated = [c for at, c in enumerate(characters) if alone[2 * at + 1]]
    return char_class(spaces), char_class(isolated or spaces)
