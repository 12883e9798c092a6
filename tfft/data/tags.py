"""Tags of entities: schemes, spans, and spans of characters on tokens.

An entity is a span of tokens with a type. A tag says which type a token belongs to and, by its
prefix, where in the entity it is. The data comes in several schemes; everything after the reader
uses IOB2: `B-` begins an entity, `I-` continues it, `O` is outside.

| scheme | New York City in Texas |
|---|---|
| IOB2 | B-LOC I-LOC I-LOC O B-LOC |
| IOB1 | I-LOC I-LOC I-LOC O I-LOC (B- only directly after an entity of the same type) |
| BIOES | B-LOC I-LOC E-LOC O S-LOC |
| BILOU | B-LOC I-LOC L-LOC O U-LOC |
| BMES | B-LOC M-LOC E-LOC O S-LOC |
| IO | LOC LOC LOC O LOC |

IOB1 and IOB2: Ramshaw & Marcus 1995 and Tjong Kim Sang & Veenstra 1999, "Representing Text
Chunks"; BILOU: Ratinov & Roth 2009. Malformed sequences have the spans that conlleval gives them,
the script of the CoNLL shared tasks, and seqeval by default.

What is wrong with the tags or spans of a row is a ValueError whose message is the reason of a
`BadRow`; the scheme is a property of the data, so `detect` raises a UserError.
"""

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from tfft.utils.errors import UserError, nearest

OUTSIDE = "O"
UNNAMED = "_"  # the type of a tag that is a prefix alone, as in data of one type; seqeval's name
# The prefixes of each scheme, and the prefix in BIOES that means the same.
SCHEMES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "IOB2": {"B": "B", "I": "I"},
        "IOB1": {"B": "B", "I": "I"},
        "BIOES": {"B": "B", "I": "I", "E": "E", "S": "S"},
        "BILOU": {"B": "B", "I": "I", "L": "E", "U": "S"},
        "BMES": {"B": "B", "M": "I", "E": "E", "S": "S"},
        "IO": {},
    }
)
_PREFIXES = frozenset("BIESLUM")
_PREFIXED = re.compile(r"([^\W\d_])-(.*)", re.DOTALL)  # a letter and a hyphen
_SUFFIXED = re.compile(r".+-[BIESLUM]", re.DOTALL)


class Span(NamedTuple):
    """An entity.

    Attributes:
        type: of the entity, e.g. `LOC`.
        start: first token (or character).
        end: one after the last, as in a slice; seqeval's end is the last token itself.
    """

    type: str
    start: int
    end: int


def detect(rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Return the scheme of tags.

    IOB1 and IOB2 have the same tags and differ in where `B-` is used: the scheme with fewer
    malformed entities is returned, IOB2 if both have as many.

    Args:
        rows: place and tags of each sentence; read once.

    Returns:
        A key of `SCHEMES`; IOB2 if no token has an entity.

    Raises:
        UserError: a prefix belongs to no scheme, prefixes of two schemes are mixed, or only some
            tags have one.
    """
    places: dict[str, str] = {}
    neighbours: Counter[tuple[str, str]] = Counter()
    for place, tags in rows:
        for tag in tags:
            places.setdefault(tag, place)
        neighbours.update(zip((OUTSIDE, *tags), tags, strict=False))
    return scheme_of(places, neighbours)


def scheme_of(places: Mapping[str, str], neighbours: Mapping[tuple[str, str], int]) -> str:
    """Return the scheme of tags, as `detect` does, from their counts.

    Args:
        places: tag -> place of the first row that has it.
        neighbours: (tag, next tag) -> how often it occurs; `O` precedes the first tag of a row.

    Raises:
        UserError: see `detect`.
    """
    places = {tag: place for tag, place in places.items() if tag != OUTSIDE}
    if not places:
        return "IOB2"
    prefixed = {tag: match for tag in places if (match := _PREFIXED.fullmatch(tag))}
    if not prefixed and not set(places) <= _PREFIXES:
        _check_plain(places)
        return "IO"
    prefixes = {}  # prefix -> a tag that has it
    for tag, place in places.items():
        prefix = prefixed[tag][1] if tag in prefixed else tag
        if tag not in prefixed and tag not in _PREFIXES:
            fix = "did you mean 'O'?" if tag in ("o", "0") else f"write B-{tag} and I-{tag}"
            raise UserError(
                f"{place}: tag {tag!r} has no prefix, but {next(iter(prefixed))!r} has one; {fix}"
            )
        if prefix not in _PREFIXES:
            raise UserError(f"{place}: {_unknown_prefix(tag, prefix, sorted(_PREFIXES))}")
        prefixes.setdefault(prefix, tag)
    schemes = [name for name, valid in SCHEMES.items() if set(prefixes) <= set(valid)]
    if not schemes:
        examples = ", ".join(f"{tag} ({places[tag]})" for tag in prefixes.values())
        valid = "; ".join(f"{name}: {' '.join(s)}" for name, s in SCHEMES.items() if s)
        raise UserError(
            f"the prefixes of the tags are of no scheme ({valid}). Received: {examples}"
        )
    return _iob1_or_iob2(neighbours) if schemes[0] == "IOB2" else schemes[0]


def _check_plain(places: Mapping[str, str]) -> None:
    """Check that tags without prefixes are types.

    Args:
        places: tag -> place of the first row that has it.

    Raises:
        UserError: all have a suffix: LOC-B, LOC-I.
    """
    if all(_SUFFIXED.fullmatch(tag) for tag in places):
        tag, place = next(iter(places.items()))
        name, _, prefix = tag.rpartition("-")
        raise UserError(
            f"{place}: tag {tag!r} has its prefix at the end; write {prefix}-{name} instead"
        )


def _iob1_or_iob2(neighbours: Mapping[tuple[str, str], int]) -> str:
    """Return which of the two schemes has fewer malformed entities.

    Args:
        neighbours: (tag, next tag) -> how often it occurs; `O` precedes the first tag of a row.
    """
    malformed = Counter({"IOB2": 0, "IOB1": 0})
    for (before, tag), count in neighbours.items():
        if tag == OUTSIDE:
            continue
        follows = before != OUTSIDE and _type(before) == _type(tag)
        if tag[0] == "I" and not follows:
            malformed["IOB2"] += count
        if tag[0] == "B" and not follows:
            malformed["IOB1"] += count
    return "IOB1" if malformed["IOB1"] < malformed["IOB2"] else "IOB2"


def _type(tag: str) -> str:
    return tag[2:] or UNNAMED


def _unknown_prefix(tag: str, prefix: str, valid: Sequence[str]) -> str:
    hint = nearest(prefix.upper(), valid)
    return f"tag {tag!r} has the unknown prefix {prefix!r}{hint}"


def split(tag: str, scheme: str) -> tuple[str, str]:
    """Return prefix and type of a tag, the prefix as in BIOES.

    A plain type, of scheme IO, has the prefix I; the outside has prefix O and type `_`, as a prefix
    without a type has.

    Args:
        tag: of a token.
        scheme: a key of `SCHEMES`.

    Raises:
        ValueError: the tag is not one of the scheme.
    """
    if tag == OUTSIDE:
        return OUTSIDE, UNNAMED
    prefixes = SCHEMES[scheme]
    if not prefixes:
        if not tag:
            raise ValueError("a tag is empty; write O for a token outside of entities")
        return "I", tag
    if tag[:1] in prefixes and tag[1:2] in ("", "-"):
        return prefixes[tag[0]], _type(tag)
    match = _PREFIXED.fullmatch(tag)
    if match:
        raise ValueError(f"{_unknown_prefix(tag, match[1], list(prefixes))} (scheme {scheme})")
    valid = ", ".join(f"{prefix}-" for prefix in prefixes)
    raise ValueError(
        f"tag {tag!r} is not one of scheme {scheme}; valid: O and a type after {valid}"
    )


def spans(tags: Sequence[str], scheme: str = "IOB2") -> list[Span]:
    """Return the entities of a sentence, in order.

    Any sequence has spans, by the rules of conlleval: a token continues an entity if its prefix is
    I or E, its type is that of the token before, and that token neither ends an entity (E, S) nor
    is outside. Every other token with a type begins one, so `O I-LOC` and `B-PER I-LOC` hold an
    entity LOC.

    Args:
        tags: of the tokens, [T].
        scheme: a key of `SCHEMES`.

    Raises:
        ValueError: a tag is not one of the scheme.
    """
    entities: list[Span] = []
    previous, previous_type = OUTSIDE, UNNAMED
    for index, tag in enumerate(tags):
        prefix, entity_type = split(tag, scheme)
        continues = prefix in ("I", "E") and previous in ("B", "I") and entity_type == previous_type
        if continues:
            entities[-1] = entities[-1]._replace(end=index + 1)
        elif prefix != OUTSIDE:
            entities.append(Span(entity_type, index, index + 1))
        previous, previous_type = prefix, entity_type
    return entities


def from_spans(entities: Iterable[Span], length: int) -> list[str]:
    """Return the IOB2 tags of entities, [T]; the inverse of `spans`.

    Args:
        entities: spans of tokens, in any order.
        length: number of tokens, T.

    Raises:
        ValueError: a span is empty or out of range, or two overlap.
    """
    tags = [OUTSIDE] * length
    previous = None
    for entity in sorted(entities, key=lambda entity: (entity.start, entity.end)):
        _check_range(entity, length, "tokens")
        if previous is not None and entity.start < previous.end:
            raise ValueError(
                f"entities overlap: {_describe(previous)} and {_describe(entity)}; a token has a "
                "single tag, so keep one of them"
            )
        tags[entity.start : entity.end] = [f"I-{entity.type}"] * (entity.end - entity.start)
        tags[entity.start] = f"B-{entity.type}"
        previous = entity
    return tags


def to_iob2(tags: Sequence[str], scheme: str) -> list[str]:
    """Return the tags of a sentence in IOB2, with malformed entities made well-formed, [T].

    Args:
        tags: of the tokens, [T].
        scheme: their scheme, a key of `SCHEMES`. In IO, neighbours of one type are one entity.

    Raises:
        ValueError: a tag is not one of the scheme.
    """
    return from_spans(spans(tags, scheme), len(tags))


def names(types: Iterable[str]) -> list[str]:
    """Return the IOB2 tags of types by tag id: O, then B- and I- of each type, sorted.

    Tag 0 is O; tag 2 t + 1 begins and tag 2 t + 2 continues an entity of type t.
    """
    return [OUTSIDE, *(f"{prefix}-{name}" for name in sorted(set(types)) for prefix in "BI")]


def inside(ids: Any) -> Any:
    """Return the ids of the tags that continue what an array of tag ids is in: I-x for B-x."""
    return ids + (ids % 2 == 1)


@dataclass(frozen=True)
class Misaligned:
    """An entity that begins or ends within a token, or has none.

    Attributes:
        entity: its characters in the text.
        text: these characters.
        tokens: the tokens that it touches, with its type; None if it touches none.
        reason: a predicate for a message.
    """

    entity: Span
    text: str
    tokens: Span | None
    reason: str


def align(
    text: str, entities: Iterable[Span], offsets: Sequence[tuple[int, int]]
) -> tuple[list[Span], list[Misaligned]]:
    """Return the tokens of entities that are given by their characters.

    White space at the ends of an entity or a token does not count: annotators select it by
    mistake, and some tokenizers include the space before a word.

    Args:
        text: of the row.
        entities: spans of characters, in any order.
        offsets: first character, and one after the last, of each token in order; a token without
            characters, such as `[CLS]`, has an empty range. [T, 2].

    Returns:
        The entities whose ends are ends of tokens, as spans of tokens in the order of `entities`;
        and the others. The caller decides about those: extend them to the `tokens` that they touch,
        or drop the row.

    Raises:
        ValueError: an entity is empty, only white space, or out of the text's range.
    """
    ranges = [_stripped(text, *offset) for offset in offsets]
    indices = [index for index, (start, end) in enumerate(ranges) if start < end]
    starts, ends = [ranges[i][0] for i in indices], [ranges[i][1] for i in indices]
    aligned, misaligned = [], []
    for entity in entities:
        _check_range(entity, len(text), "characters")
        start, end = _stripped(text, entity.start, entity.end)
        if start == end:
            raise ValueError(f"entity {_describe(entity)} holds only white space")
        # Several tokens may share a character, as the bytes of an emoji do: all are touched.
        low, high = bisect_right(ends, start), bisect_left(starts, end)
        if low >= high:
            reason = "has no token; was the text cut before it?"
            misaligned.append(Misaligned(entity, text[start:end], None, reason))
            continue
        tokens = Span(entity.type, indices[low], indices[high - 1] + 1)
        first, last = starts[low], ends[high - 1]
        if (first, last) == (start, end):
            aligned.append(tokens)
            continue
        reason = f"does not begin and end with its tokens, {text[first:last]!r}"
        misaligned.append(Misaligned(entity, text[start:end], tokens, reason))
    return aligned, misaligned


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """Return a range of characters without the white space at its ends."""
    part = text[start:end]
    first = start + len(part) - len(part.lstrip())
    return first, first + len(part.strip())


def _check_range(entity: Span, length: int, unit: str) -> None:
    if not 0 <= entity.start < entity.end <= length:
        raise ValueError(
            f"entity {_describe(entity)} is empty or out of range: there are {length} {unit} (0 to "
            f"{length}, the end excluded)"
        )


def _describe(entity: Span) -> str:
    return f"{entity.type} [{entity.start}, {entity.end})"
