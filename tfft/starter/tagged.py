"""Recognise words with tags: CoNLL files, lists of tokens beside lists of tags, texts with spans.

The tags themselves are read by `data.tag_targets`, as training reads them.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tfft.config import Source
from tfft.data import sources, tags
from tfft.data.records import Row
from tfft.data.tag_targets import TAGS, are_entities
from tfft.data.text_files import decoded_lines
from tfft.starter import labels, names
from tfft.starter.head import ROWS, Column, Head, Name
from tfft.utils.errors import UserError

_LINES = 2_000  # of a file that are looked at to tell its format
_MOST = 0.95  # share of lines, cells or tags that decides what they are; data have mistakes
_MOST_TYPES = 200  # tags without prefixes in a file of any name
_MAX_CHARACTERS = 20  # of a token, on average
_PREFIXED = re.compile("[BIESLUM]-.+")
_NUMBERED = (
    "the tags are numbers and the data do not name them: write their names, in order, such as "
    "[O, B-person, I-person]"
)


@dataclass(frozen=True)
class TaggedColumns:
    """The columns of words and of their tags.

    Attributes:
        label: column of the tags or of the spans.
        text: column of the tokens; None for spans, whose text is in one of the other columns.
        others: further candidates for the label.
        labels: names of tags that are numbers, by number; empty if the tags are texts.
        doubt: what is uncertain about `labels`, or None.
    """

    label: Name
    text: Name | None = None
    others: Sequence[Name] = ()
    labels: tuple[str, ...] = ()
    doubt: str | None = None


def is_conll(path: Path, encoding: str) -> bool:
    """Return whether the first lines of a file of any name look like those of a CoNLL file.

    They do if blank lines separate sequences of lines with the same number of columns, at least
    two; the first column holds tokens and the last one tags.
    """
    try:
        lines = [line.strip() for line in islice(decoded_lines(path, encoding), _LINES)]
    except UserError:  # not in this encoding, for example
        return False
    is_token = [bool(line) and not line.startswith(("# ", "-DOCSTART-")) for line in lines]
    rows = [
        line.split("\t" if "\t" in line else None)
        for line, holds_token in zip(lines, is_token, strict=True)
        if holds_token
    ]
    sentences = sum(is_token[i] and not is_token[i - 1] for i in range(1, len(lines)))
    sentences += bool(is_token) and is_token[0]
    if sentences < 2 or len(rows) <= sentences:
        return False
    widths = Counter(map(len, rows))
    width, count = widths.most_common(1)[0]
    rows = [row for row in rows if len(row) == width]
    if width < 2 or count < _MOST * widths.total():
        return False
    return _have_no_spaces([row[0] for row in rows]) and _are_tags([row[-1] for row in rows])


def columns(head: Head, fixed: Mapping[str, Name]) -> TaggedColumns | None:
    """Return the columns of words with tags, None if the rows have none.

    Args:
        head: the first rows.
        fixed: columns that the user named, by key of the config.

    Raises:
        UserError: the rows of a CoNLL file have a single column, or `fixed` names a column that
            such rows do not have.
    """
    if head.source.source == "conll":
        return _of_conll(head, fixed)
    if fixed.keys() & {"image", "text_pair"}:
        return None
    return _of_tokens(head, fixed) or _of_spans(head, fixed)


def _of_conll(head: Head, fixed: Mapping[str, Name]) -> TaggedColumns:
    """Return the columns of a CoNLL file.

    The label is the last column of tags, the text the first one that does not number the tokens.
    """
    for key in ("image", "text_pair"):
        if key in fixed:
            raise UserError(f"--{key}: rows of CoNLL files have tokens and tags alone")
    last = next((c for c in reversed(head.columns) if _have_entities(c)), head.columns[-1])
    label = fixed.get("label", last.name)
    others = [c for c in head.columns if c.name not in (label, fixed.get("text"))]
    if "text" in fixed:
        return TaggedColumns(label, fixed["text"], _tag_columns(others))
    if not others:
        raise UserError(
            f"{head.source.path}: the rows have a single column; a tab or a space must separate a "
            "token and its tag"
        )
    text = next((c for c in others if not _counts_up(c)), others[0])
    return TaggedColumns(label, text.name, _tag_columns(c for c in others if c is not text))


def _of_tokens(head: Head, fixed: Mapping[str, Name]) -> TaggedColumns | None:
    """Return a list of tokens and a list of as many tags, by common names or by the tags."""
    texts = [c for c in _allowed(head, fixed, "text") if _are_tokens(c)]
    candidates = [c for c in _allowed(head, fixed, "label") if _can_be_tags(c)]
    pairs = [
        (text, label)
        for text in texts
        for label in candidates
        if text is not label and _are_parallel(text, label)
    ]
    pairs = [pair for pair in pairs if "label" in fixed or _are_named(*pair) or _hold_tags(pair[1])]
    if not pairs:
        return None
    text, label = min(pairs, key=_rank)
    others = [other.name for words, other in pairs if words is text and other is not label]
    tag_names, doubt = _tag_names(label)
    return TaggedColumns(label.name, text.name, others, tag_names, doubt)


def _of_spans(head: Head, fixed: Mapping[str, Name]) -> TaggedColumns | None:
    """Return a list of entities beside a text, unless a column is named as its label."""
    spans = [c for c in _allowed(head, fixed, "label") if _are_spans(c)]
    classes = [
        c for c in head.columns if labels.are_classes(c.texts) and not names.is_identifier(c.name)
    ]
    is_classified = any(names.normalized(c.name) in names.CERTAIN_LABELS for c in classes)
    if not spans or ("label" not in fixed and is_classified):
        return None
    label = min(spans, key=lambda c: names.position(names.TAGS, c.name))
    others = [c.name for c in (*spans, *classes) if c is not label]
    return TaggedColumns(label.name, others=others)


def _allowed(head: Head, fixed: Mapping[str, Name], key: str) -> list[Column]:
    """Return the columns of lists that a role may have."""
    return [c for c in head.columns if c.lists and fixed.get(key, c.name) == c.name]


def _tag_columns(candidates: Iterable[Column]) -> list[Name]:
    return [c.name for c in candidates if _hold_tags(c)]


def _items(column: Column) -> list[Any]:
    """Return the items of all lists of a column."""
    return [item for cell in column.lists for item in cell or ()]


def _are_tokens(column: Column) -> bool:
    """Return whether lists hold words and signs, not sentences."""
    tokens = _items(column)
    if not tokens or any(type(token) is not str for token in tokens):
        return False
    return _have_no_spaces(tokens) and sum(map(len, tokens)) <= _MAX_CHARACTERS * len(tokens)


def _have_no_spaces(tokens: Sequence[str]) -> bool:
    return sum(len(token.split()) == 1 for token in tokens) >= _MOST * len(tokens)


def _can_be_tags(column: Column) -> bool:
    """Return whether lists hold names or numbers of tags; numbers from 0, and not too many."""
    items = _items(column)
    if not items or any(type(item) not in (str, int) for item in items):
        return False
    most = labels.MOST_CLASSES
    is_small = all(0 <= item < most for item in items if type(item) is int)
    return is_small and len(set(items)) <= most


def _hold_tags(column: Column) -> bool:
    return _are_tags([str(item) for item in _items(column)])


def _have_entities(column: Column) -> bool:
    return _hold_tags(column) and any(item != tags.OUTSIDE for item in _items(column))


def _are_tags(values: Sequence[str]) -> bool:
    """Return whether values are tags of entities: `B-x` and `I-x` with `O`, or mostly `O`."""
    counts = Counter(values)
    outside = counts.get(tags.OUTSIDE, 0)
    prefixed = sum(n for value, n in counts.items() if _PREFIXED.fullmatch(value))
    if prefixed and prefixed + outside >= _MOST * counts.total():
        return True
    return 2 * outside > counts.total() and len(counts) <= _MOST_TYPES


def _are_parallel(first: Column, second: Column) -> bool:
    """Return whether two columns have lists of the same length in each row, above 1 at times."""
    lengths = [(len(a), len(b)) for a, b in zip(first.lists, second.lists, strict=True) if a and b]
    equal = [a for a, b in lengths if a == b]
    return max(equal, default=0) > 1 and len(equal) >= _MOST * len(lengths)


def _are_named(text: Column, label: Column) -> bool:
    """Return whether two columns have names that are common for tokens and tags."""
    return (
        names.normalized(text.name) in names.TOKENS and names.normalized(label.name) in names.TAGS
    )


def _rank(pair: tuple[Column, Column]) -> tuple[int, int]:
    """Return how telling the names of a pair are; less is more."""
    text, label = pair
    return names.position(names.TOKENS, text.name), names.position(names.TAGS, label.name)


def _are_spans(column: Column) -> bool:
    """Return whether lists hold entities; a text may have none."""
    cells = [cell for cell in column.lists if cell]
    return bool(cells) and sum(map(are_entities, cells)) >= _MOST * len(cells)


def _counts_up(column: Column) -> bool:
    """Return whether a column numbers the tokens of each sentence."""
    sentences = [list(cell) for cell in column.lists if cell]
    numbered = [
        cell == [str(n + int(cell[0] == "1")) for n in range(len(cell))] for cell in sentences
    ]
    return any(len(cell) > 1 for cell in sentences) and all(numbered)


def _tag_names(column: Column) -> tuple[tuple[str, ...], str | None]:
    """Return the names of tags that are numbers, and what is uncertain about them.

    Where the source names none, they are numbered, and the most frequent tag, if it is 0, is `O`.
    """
    counts = Counter(str(item) for item in _items(column))
    if not all(value.isascii() and value.isdecimal() for value in counts):
        return (), None
    if column.item_names:
        return tuple(column.item_names), None
    is_outside = counts.most_common(1)[0][0] == "0"
    count = max(1, *map(int, counts)) + 1
    first = tags.OUTSIDE if is_outside else "tag_0"
    return (first, *(f"tag_{n}" for n in range(1, count))), _NUMBERED


def read(source: Source, columns: Sequence[Name], key: str) -> list[Row]:
    """Return the first rows that training can use: the text, and its `TaggedWords`.

    Args:
        source: the rows.
        columns: of the text and of the tags.
        key: the source's key in the config, for errors.
    """
    rows = islice(sources.read(source, columns, key, TAGS), ROWS)
    return [row for row in rows if isinstance(row, Row)]


def count_types(rows: Sequence[Row], tag_names: Sequence[str]) -> Counter[str]:
    """Return the number of entities of each type; types in names alone have none.

    Args:
        rows: as `read` returns them.
        tag_names: names of tags that are numbers, by number; they may be empty.

    Raises:
        UserError: the tags are of no scheme.
    """
    name_of = {str(number): name for number, name in enumerate(tag_names)}
    named = [(row.place, [name_of.get(t, t) for t in row.values[-1].tags]) for row in rows]
    scheme = tags.detect([*named, ("data.labels", tag_names)])
    counts = Counter(span.type for _, words in named for span in tags.spans(words, scheme))
    for tag in tag_names:
        if tag != tags.OUTSIDE:
            counts[tags.split(tag, scheme)[1]] += 0
    return counts
