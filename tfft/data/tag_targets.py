"""Targets of token classification: a tag for each word of a text.

A row comes as tokens with a tag each (CoNLL files; columns of lists), or as a text with the spans
of its entities. Both become a text and its words: the tokens, joined by spaces, or what
`preprocess.words` divides the text into.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tfft.config import DataConfig
from tfft.data import tags
from tfft.data.records import BadRow, Columns, Row
from tfft.data.targets import Locate, check_distinct, configured_labels
from tfft.preprocess import words
from tfft.preprocess.offsets import byte_bounds
from tfft.preprocess.windows import Window
from tfft.utils import console
from tfft.utils.errors import UserError, nearest
from tfft.utils.ragged import Ragged
from tfft.utils.reading import LONGEST_TEXT, is_unicode

if TYPE_CHECKING:  # `prepared` imports `targets`
    from tfft.data.prepared import Prepared, Writer
    from tfft.data.splits import Dataset

_PREFIX = re.compile("[BIESLUM]-")
_START_KEYS, _END_KEYS = ("start", "start_offset", "begin"), ("end", "end_offset")
_TYPE_KEYS = ("label", "type", "entity", "entity_group")


class TaggedWords(NamedTuple):
    """The words of a text and their tags.

    Attributes:
        starts: the byte at which each word begins, ascending.
        tags: as they are in the data, in any scheme.
    """

    starts: list[int]
    tags: list[str]


@dataclass(frozen=True)
class TagTargets:
    """A tag for each word: ids of `tags.names`, int32 `Ragged` [N]."""

    width = 1
    of_windows = True
    files = ("labels", "label_ends", "word_starts", "token_words", "word_tokens", "word_ends")
    noun = "tags"

    @property
    def settings(self) -> list[Any]:
        """Plain data that the stored targets depend on."""
        # Words depend on the classes of characters.
        return ["tags", 3, unicodedata.unidata_version]

    def read(self, row: Row, columns: Columns) -> Row | BadRow:
        """Return the row as its text and its `TaggedWords`."""
        content, answer = row.values
        try:
            if isinstance(content, str):
                return Row(row.place, (content, _from_spans(content, answer)))
            return Row(row.place, _from_tokens(content, answer))
        except _CellError as error:
            column = columns[error.position]
            return BadRow(row.place, f"column {column!r} {error}")

    def labels(self, value: TaggedWords) -> Sequence[str]:
        """Return the tags of a row."""
        return value.tags

    def problem(self, value: str) -> str | None:
        """Return None: `read` has checked the tags."""
        return None

    def write(self, writer: "Writer", rows: Sequence[Row]) -> None:
        """Append the ids of the tags in order of appearance, and the first byte of each word."""
        tagged = [row.values[-1] for row in rows]
        ids = [[writer.name_id(tag) for tag in row.tags] for row in tagged]
        writer.put_ragged("label", [np.array(row_ids, np.int32) for row_ids in ids])
        starts = [start for row in tagged for start in row.starts]
        writer.put("word_starts", np.array(starts, np.int32))

    def write_windows(self, writer: "Writer", row: Row, windows: Sequence[Window]) -> None:
        """Append the word of each token, and the first token of the words of each window."""
        token_words, word_tokens, counts = word_places(windows, row.values[-1].starts)
        writer.put("token_words", token_words)
        writer.put("word_tokens", word_tokens)
        writer.put_ends("word", counts)

    def lost(self, split: "Dataset") -> str | None:
        """Return how many words of entities have no token; None if all have one."""
        lost = int(((split.word_tokens.values == -1) & (split.targets.values > 0)).sum())
        if not lost:
            return None
        return (
            f"{lost:,} words of entities have no token: they are beyond max_windows, or the "
            "tokenizer drops them; they count as missed"
        )

    def names(
        self,
        config: DataConfig,
        stored: Sequence[str] | None,
        prepared: "Prepared",
        locate: Locate,
    ) -> tuple[str, ...]:
        """Return the names of IOB2 tags, by id: those of the checkpoint, else of the data.

        Types that only `data.labels` names have tags too.

        Raises:
            UserError: the tags are of no scheme.
        """
        if stored is not None:
            return tuple(stored)
        data_tags, scheme = _read_tags(prepared, config, locate)
        listed = configured_labels(config) or []
        types = {tags.split(tag, scheme)[1] for tag in data_tags if tag != tags.OUTSIDE}
        # They may be types, or tags of any scheme.
        types |= {_PREFIX.sub("", tag) for tag in listed if tag != tags.OUTSIDE}
        if tags.OUTSIDE not in data_tags:
            console.log("data: every word is in an entity (no tag is O); is data.label right?")
        return tuple(tags.names(types))

    def array(
        self, prepared: "Prepared", names: Sequence[str], config: DataConfig, locate: Locate
    ) -> Ragged:
        """Return the ids of the tags of all words, in IOB2 and well-formed.

        Raises:
            UserError: the tags are of no scheme, or one has a type that is not in `names`.
        """
        check_distinct(prepared.names, locate)
        names_of_ids, scheme = _read_tags(prepared, config, locate)
        id_of_name = {name: i for i, name in enumerate(names)}
        known_types = [name[2:] for name in names if name.startswith("B-")]
        begin, inside, prefixes = [], [], []
        for raw, tag in zip(prepared.names, names_of_ids, strict=True):
            prefix, kind = tags.split(tag, scheme)
            if prefix != tags.OUTSIDE and f"B-{kind}" not in id_of_name:
                raise UserError(
                    f"{locate(raw)}: tag {tag!r} has a type that is not one of the model's"
                    f"{nearest(kind, known_types)}"
                )
            begin.append(0 if prefix == tags.OUTSIDE else id_of_name[f"B-{kind}"])
            inside.append(0 if prefix == tags.OUTSIDE else id_of_name[f"I-{kind}"])
            prefixes.append(prefix)
        raw_ids, ends = prepared.labels, np.array(prepared.map("label_ends", np.int64))
        begin_of, inside_of = np.array(begin, np.int32), np.array(inside, np.int32)
        continuing = np.isin(np.array(prefixes, dtype=str), ("I", "E"))
        open_entity = np.isin(np.array(prefixes, dtype=str), ("B", "I"))
        # The rule of `tags.spans` for all words at once.
        before = np.roll(raw_ids, 1)
        is_first = np.zeros(len(raw_ids), bool)
        starts = np.concatenate([np.zeros(1, np.int64), ends])[:-1]
        is_first[starts[starts < len(raw_ids)]] = True
        continues = (
            ~is_first
            & continuing[raw_ids]
            & open_entity[before]
            & (begin_of[raw_ids] == begin_of[before])
        )
        return Ragged(np.where(continues, inside_of[raw_ids], begin_of[raw_ids]), ends)

    def check(self, names: Sequence[str], locate: Locate) -> None:
        """Check that there is a type of entities.

        Raises:
            UserError: there is none.
        """
        if len(names) < 3:
            raise UserError("data.label: no entity in the training rows; all tags are O")

    def groups(self, targets: Ragged) -> np.ndarray:
        """Return the rarest type of the entities of each row, -1 for a row without any."""
        begins = (targets.values % 2 == 1) & (targets.values > 0)
        types, rows = targets.values[begins] // 2, targets.row_ids[begins]
        counts = np.bincount(types)
        groups = np.full(len(targets), -1)
        # The rarest are written last.
        order = np.argsort(-counts[types], kind="stable")
        groups[rows[order]] = types[order]
        return groups

    def units(self, prepared: Any) -> None:
        """Return None: each row is held out by itself."""
        return None

    def text(self, target: np.ndarray, names: Sequence[str]) -> str:
        """Return the tags, separated by spaces."""
        return " ".join(names[i] for i in target)

    def summary(self, targets: Ragged, names: Sequence[str]) -> dict[str, int | float]:
        """Return the number of entities of each type."""
        counts = np.bincount(targets.values, minlength=len(names))
        return {name[2:]: int(counts[i]) for i, name in enumerate(names) if name[:2] == "B-"}


TAGS = TagTargets()


def word_places(
    windows: Sequence[Window], word_starts: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return how the words of a row and the tokens of its windows belong together.

    Args:
        windows: of the row. Only the tokens that a window answers for belong to words.
        word_starts: bytes at which the words of the row begin, ascending, [W].

    Returns:
        The word of each token of all windows, -1 without one, int32 [tokens]; the first token of
        each word in its window, as `words.tokens_of_words` gives it, int32 [W]; and the number of
        words of each window, int64 [windows]: each word belongs to one.
    """
    is_own = np.concatenate([np.array(window.is_own, bool) for window in windows])
    starts, ends = (
        np.concatenate([getattr(window, name) for window in windows])[is_own]
        for name in ("starts", "ends")
    )
    # All windows at once: a word may begin in one and end in the next.
    where = (starts, ends, np.zeros(len(starts)), word_starts)
    token_words = np.full(len(is_own), -1, np.int32)
    token_words[is_own] = words.words_of_tokens(*where)
    tokens = words.tokens_of_words(*where)
    lengths = [len(window.ids) for window in windows]
    window_of = np.repeat(np.arange(len(windows)), lengths)[is_own]
    position_of = np.concatenate([np.arange(length) for length in lengths])[is_own]
    index = np.where(tokens < -1, -2 - tokens, tokens)
    has_token = index >= 0
    word_windows = np.zeros(len(tokens), np.int64)
    word_windows[has_token] = window_of[index[has_token]]
    # A word without a token belongs to the window of the word before.
    counts = np.bincount(np.maximum.accumulate(word_windows), minlength=len(windows))
    positions = np.full(len(tokens), -1, np.int32)
    positions[has_token] = position_of[index[has_token]]
    word_tokens = np.where(tokens < -1, -2 - positions, positions).astype(np.int32)
    return token_words, word_tokens, counts


class _CellError(Exception):
    """What is wrong with a cell, as a predicate; `position` is that of its column."""

    def __init__(self, reason: str, position: int = 1):
        super().__init__(reason)
        self.position = position


def _from_tokens(tokens: Any, cells: Any) -> tuple[str, TaggedWords]:
    """Return the text and the words of tokens with a tag each."""
    if not isinstance(tokens, list | tuple):
        raise _CellError(f"must be a text or a list of tokens. Received: {_short(tokens)}", 0)
    for number, token in enumerate(tokens, 1):
        if not isinstance(token, str):
            raise _CellError(f"must hold texts. Received: {_short(token)}, token {number}", 0)
        if not token.strip():
            raise _CellError(f"holds an empty token, number {number}", 0)
    if not isinstance(cells, list | tuple):
        raise _CellError(f"must be a list of tags, as the tokens are. Received: {_short(cells)}")
    if len(cells) != len(tokens):
        raise _CellError(f"holds {len(cells)} tags for {len(tokens)} tokens")
    if not tokens:
        raise _CellError("is empty; fill it or drop the row", 0)
    for tag in cells:
        if type(tag) not in (str, int):
            raise _CellError(f"must hold texts or numbers. Received: {_short(tag)}")
        if not str(tag).strip():
            raise _CellError("holds an empty tag; write O for a word outside of entities")
        _check_unicode(str(tag), 1)
    text = " ".join(tokens)
    _check_unicode(text, 0)
    # A space after each token.
    ends = accumulate(len(token.encode()) + 1 for token in tokens)
    starts = [0, *ends][:-1]
    return text, TaggedWords(starts, [str(tag) for tag in cells])


def _from_spans(text: str, cells: Any) -> TaggedWords:
    """Return the words of a text with spans of characters."""
    _check_unicode(text, 0)
    if not isinstance(cells, list | tuple):
        raise _CellError(
            "must be a list of entities, such as {start: 0, end: 5, label: PER}. "
            f"Received: {_short(cells)}"
        )
    entities = [_entity(cell) for cell in cells]
    spans = words.word_spans(text)
    try:
        aligned, misaligned = tags.align(text, entities, spans)
        word_tags = tags.from_spans(aligned, len(spans))
    except ValueError as error:
        raise _CellError(f"is not usable: {error}") from None
    if misaligned:
        first = misaligned[0]
        raise _CellError(f"is not usable: entity {first.text!r} {first.reason}")
    bounds = byte_bounds(text)
    return TaggedWords([bounds[start] for start, _ in spans], word_tags)


def are_entities(cells: Sequence[Any]) -> bool:
    """Return whether each item of a list is an entity of a text: start, end and label."""
    try:
        return all(map(_entity, cells))
    except _CellError:
        return False


def _entity(cell: Any) -> tags.Span:
    """Return an entity of a cell: an object with start, end and label, or a list of these."""
    if isinstance(cell, Mapping):
        values = [
            next((cell[key] for key in keys if key in cell), None)
            for keys in (_START_KEYS, _END_KEYS, _TYPE_KEYS)
        ]
    else:
        values = list(cell) if isinstance(cell, list | tuple) and len(cell) == 3 else [None] * 3
    start, end, kind = values
    if type(start) is not int or type(end) is not int or not isinstance(kind, str) or not kind:
        raise _CellError(
            f"must hold entities with start, end (characters) and label. Received: {_short(cell)}"
        )
    _check_unicode(kind, 1)
    return tags.Span(kind, start, end)


def _check_unicode(text: str, position: int) -> None:
    if len(text) > LONGEST_TEXT:
        raise _CellError(
            f"has {len(text):,} characters; at most {LONGEST_TEXT:,} are read", position
        )
    if not is_unicode(text):
        raise _CellError("holds a lone surrogate: it was encoded or truncated wrongly", position)


def _read_tags(prepared: "Prepared", config: DataConfig, locate: Locate) -> tuple[list[str], str]:
    """Return the names of the prepared tags, and their scheme.

    With `data.labels`, a number is an index into these names.

    Raises:
        UserError: the tags are of no scheme.
    """
    listed = configured_labels(config) or []
    indices = {str(i): name for i, name in enumerate(listed)}
    numbers = [name for name in prepared.names if name.isdecimal() and name not in listed]
    if numbers and not listed and len(numbers) == len(prepared.names):
        raise UserError("data.label: the tags are numbers; data.labels must name them in order")
    if listed and (beyond := [number for number in numbers if number not in indices]):
        raise UserError(
            f"{locate(beyond[0])}: tag {beyond[0]} has no name: data.labels has {len(listed)} of "
            f"them (0 to {len(listed) - 1})"
        )
    names = [name if name in listed else indices.get(name, name) for name in prepared.names]
    neighbours = _neighbours(prepared, names)
    try:
        return names, tags.scheme_of(dict.fromkeys(names, ""), neighbours)
    except UserError:
        # The rows are read again for the places of the tags in the message.
        places = {name: locate(raw) for name, raw in zip(names, prepared.names, strict=True)}
        return names, tags.scheme_of(places, neighbours)


def _neighbours(prepared: "Prepared", names: Sequence[str]) -> dict[tuple[str, str], int]:
    """Return (tag, next tag) -> how often it occurs; `O` precedes the first tag of a row."""
    ids, ends = prepared.labels, np.array(prepared.map("label_ends", np.int64))
    before = np.roll(ids, 1)
    starts = np.concatenate([np.zeros(1, np.int64), ends])[:-1]
    before[starts[starts < len(ids)]] = len(names)
    counts = np.bincount(before * np.int64(len(names)) + ids)
    all_names = [*names, tags.OUTSIDE]
    result: dict[tuple[str, str], int] = {}
    for code in np.flatnonzero(counts):
        pair = (all_names[code // len(names)], names[code % len(names)])
        result[pair] = result.get(pair, 0) + int(counts[code])
    return result


def _short(value: Any) -> str:
    return repr(value)[:60]
