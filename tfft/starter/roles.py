"""Decide which column is the label, the text, the second text of a pair or the image."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tfft.data.array_files import IMAGE_SUFFIXES
from tfft.data.records import LABEL_SEPARATOR, check_column_indices, column_indices
from tfft.starter import labels, names, questions, tagged
from tfft.starter.head import Column, Head, Name
from tfft.utils.errors import UserError

_MIN_CHARACTERS = 8  # of a text, on average
_MIN_DISTINCT = 0.3  # share of different texts
_FEW_ROWS = 20
_MAX_LISTED = 20  # names in a message
_MAX_NAME = 60  # characters of a name there


@dataclass(frozen=True)
class Roles:
    """The columns of a task.

    Attributes:
        label: column of the label.
        text: column of the text, None for images.
        text_pair: column of the second text of a pair, or None.
        question: column of the question, None without contexts.
        context: column of the text that answers it, or None.
        image: column of the image, None for texts.
        separator: separates the labels of a row; None if it has exactly one.
        targets: the kind of targets, as in `config.tasks.TaskSection`.
        labels: names of tags that are numbers, by number.
        others: further candidates, by key of the config.
        doubts: what could not be decided, by key of the config.
    """

    label: Name
    text: Name | None = None
    text_pair: Name | None = None
    question: Name | None = None
    context: Name | None = None
    image: Name | None = None
    separator: str | None = None
    targets: Literal["class", "labels", "numbers", "tags", "answers"] = "class"
    labels: tuple[str, ...] = ()
    others: Mapping[str, Sequence[Name]] = field(default_factory=dict)
    doubts: Mapping[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> list[Name]:
        """The columns in the order of a reader's request: the label last."""
        inputs = (self.image,) if self.image is not None else self.texts
        return [*inputs, self.label]

    @property
    def texts(self) -> list[Name]:
        """The columns of texts that the model reads."""
        columns = (self.text, self.text_pair, self.question, self.context)
        return [name for name in columns if name is not None]


def decide(head: Head, overrides: Mapping[str, str]) -> Roles:
    """Return the columns of the task that the rows are for.

    Args:
        head: the first rows.
        overrides: names, or numbers, of columns by key of the config; they are not questioned.

    Raises:
        UserError: a column of `overrides` does not exist, or a role has no candidate.
    """
    _check_flags(overrides)
    fixed = {key: _resolve(head, value) for key, value in overrides.items()}
    question_columns = questions.columns(head, fixed)
    if question_columns is not None:
        return _of_questions(head, fixed, question_columns)
    tag_columns = tagged.columns(head, fixed)
    if tag_columns is not None:
        return _of_tags(head, fixed, tag_columns)
    image = fixed.get("image", None if "text" in fixed else _image(head))
    taken = {name for name in (*fixed.values(), image) if name is not None}
    label, label_others = fixed.get("label"), []
    if label is None:
        label, label_others = _label(head, taken, image)
    others: dict[str, Sequence[Name]] = {"label": label_others}
    text = pair = None
    if image is None:
        text, pair, others["text"] = _texts(head, fixed, label)
        # A category in words, such as a headline's section, is a candidate for both.
        others["label"] = [name for name in label_others if name not in (text, pair)]
    column = head.column(label)
    texts = column.texts if column is not None else []
    # Images have no task that predicts numbers.
    is_number = image is None and labels.are_numbers(texts)
    separator = None if is_number else labels.separator(texts)
    is_certain = "label" in fixed or names.normalized(label) in names.CERTAIN_LABELS
    doubts = _doubts(head, others, is_certain)
    if not is_number:
        doubts |= _class_doubts(head, label)
    return Roles(
        label=label,
        text=text,
        text_pair=pair,
        image=image,
        separator=separator,
        targets="numbers" if is_number else "class" if separator is None else "labels",
        others=others,
        doubts=doubts,
    )


def _of_questions(
    head: Head, fixed: Mapping[str, Name], columns: questions.QuestionColumns
) -> Roles:
    """Return the roles in rows of questions about contexts."""
    is_certain = "label" in fixed or not columns.others["label"]
    is_certain = is_certain or names.normalized(columns.label) in names.ANSWERS
    return Roles(
        label=columns.label,
        question=columns.question,
        context=columns.context,
        targets="answers",
        others=columns.others,
        doubts=_doubts(head, columns.others, is_certain),
    )


def _of_tags(head: Head, fixed: Mapping[str, Name], columns: tagged.TaggedColumns) -> Roles:
    """Return the roles in rows whose words have tags."""
    others: dict[str, Sequence[Name]] = {"label": columns.others, "text": ()}
    text = columns.text
    if text is None:  # spans say nothing about the column of their text
        text, pair, candidates = _texts(head, fixed, columns.label)
        others["text"] = [*(() if pair is None else (pair,)), *candidates]
        others["label"] = [name for name in columns.others if name != text]
    # Beside spans, classes may be the label: another task.
    is_named = columns.text is not None and names.normalized(columns.label) in names.TAGS
    is_certain = "label" in fixed or isinstance(columns.label, int) or is_named
    doubts = _doubts(head, others, is_certain or not others["label"])
    if columns.doubt is not None:
        doubts["labels"] = columns.doubt
    return Roles(
        label=columns.label,
        text=text,
        targets="tags",
        labels=columns.labels,
        others=others,
        doubts=doubts,
    )


def _check_flags(overrides: Mapping[str, str]) -> None:
    """Check that no flag of a column would have no effect.

    Raises:
        UserError: one would.
    """
    texts = [f"--{key}" for key in ("text", "text_pair") if key in overrides]
    others = [*texts, *(["--image"] if "image" in overrides else [])]
    for key in ("question", "context"):
        if key in overrides and others:
            raise UserError(f"--{key}: cannot be given with {others[0]}: they are of other tasks")
    if texts and "image" in overrides:
        raise UserError(f"{texts[0]}: cannot be given with --image: rows are texts or images")
    if texts == ["--text_pair"]:
        raise UserError("--text_pair: needs --text, the column of the first text of the pair")


def listed(candidates: Sequence[Name]) -> str:
    """Return the names of columns for a message, at most twenty of them."""
    parts = [repr(n) if isinstance(n, int) else shown_name(n) for n in candidates]
    more = f" and {len(parts) - _MAX_LISTED} others" if len(parts) > _MAX_LISTED else ""
    return ", ".join(parts[:_MAX_LISTED]) + more


def shown_name(column: str) -> str:
    """Return the name of a column in quotes, on one line and cut if it is long."""
    text = repr(column) if column.isprintable() else ascii(column)
    return text if len(text) <= _MAX_NAME else f"{text[:_MAX_NAME]}..."


def _resolve(head: Head, value: str) -> Name:
    """Return an existing column for the value of a flag."""
    columns = [column.name for column in head.columns]
    if columns and isinstance(columns[0], int):
        if not re.fullmatch("-?[0-9]{1,9}", value):
            raise UserError(f"{head.source.path}: columns are numbers from 0. Received: {value!r}")
        if int(value) not in columns:
            check_column_indices([int(value)], len(columns), str(head.source.path))
        return columns[int(value)]
    column_indices([str(name) for name in columns], [value], str(head.source.path))
    return value


def _image(head: Head) -> Name | None:
    """Return the column of encoded images, or of paths that end as those of images do."""
    for column in head.columns:
        paths = [text for text in column.texts if text.lower().endswith(IMAGE_SUFFIXES)]
        if column.is_image or (paths and len(paths) >= 0.9 * len(column.texts)):
            return column.name
    return None


def _label(head: Head, taken: set[Name], image: Name | None) -> tuple[Name, list[Name]]:
    """Return the label column and the other candidates.

    A common name decides; without one, the fewest classes do.
    """
    free = [c for c in head.columns if c.name not in taken and not c.is_image]
    candidates = [c for c in free if _is_label(c, head) and not names.is_identifier(c.name)]
    named = [c for c in candidates if names.normalized(c.name) in names.LABELS]
    named.sort(key=lambda c: names.LABELS.index(names.normalized(c.name)))
    if not named and image is None and "text" not in taken:
        texts = [c for c in candidates if _is_text(c)]
        text = max(texts, key=_mean_length, default=None)
        rest = [c for c in candidates if c is not text]
        candidates = rest if len(free) > 1 else []
    # Numbers where no column of classes is left, a text whose values repeat not counted.
    is_text = {c.name for c in candidates if names.normalized(c.name) in names.TEXTS}
    if image is None and is_text == {c.name for c in candidates} and (numbers := _numbers(free)):
        is_named = names.normalized(numbers[0]) in names.LABELS
        if is_named or len(numbers) == 1:
            return numbers[0], numbers[1:]
    if not candidates:
        raise UserError(_no_label(head, free))
    classes = {c.name: len(set(c.classes or c.texts)) for c in candidates}
    chosen = named[0] if named else min(candidates, key=lambda c: classes[c.name])
    return chosen.name, [c.name for c in candidates if c is not chosen]


def _numbers(columns: Sequence[Column]) -> list[Name]:
    """Return the columns of numbers, those with the name of a label first."""
    numbers = [
        c.name for c in columns if labels.are_numbers(c.texts) and not names.is_identifier(c.name)
    ]
    ranks = {name: rank for rank, name in enumerate(names.LABELS)}
    return sorted(numbers, key=lambda name: ranks.get(names.normalized(name), len(ranks)))


def _is_label(column: Column, head: Head) -> bool:
    if column.classes or labels.are_classes(column.texts):
        return True
    if names.normalized(column.name) not in names.LABELS or labels.are_decimals(column.texts):
        return False
    # A large table may be sorted by its label, and begin with many rows of one class. In a table of
    # a few rows no label may repeat.
    distinct = len(set(column.texts))
    return distinct == 1 if not head.complete else distinct >= 2 and head.rows <= _FEW_ROWS


def _no_label(head: Head, free: Sequence[Column]) -> str:
    where = f"{head.source.path}: no label column can be identified"
    if len(head.columns) == 1 and head.header is not None:
        sign = "commas" if head.source.source == "csv" else "tabs"
        return f"{where}: the rows have a single column; {sign} must separate the columns"
    reason = "none holds short values that repeat"
    for column in free:
        is_named = names.normalized(column.name) in names.LABELS
        if column.problem and not column.texts and " is null; " not in column.problem:
            reason = column.problem
        elif names.is_identifier(column.name) and _is_label(column, head):
            reason = f"column {listed([column.name])} is named as an identifier"
        elif column.texts and labels.are_decimals(column.texts):
            reason = f"column {listed([column.name])} holds decimal fractions, not classes"
        elif is_named and len(set(column.texts)) == 1:
            reason = f"column {listed([column.name])} holds one class alone"
    columns = listed([column.name for column in head.columns])
    return f"{where} among {columns}: {reason}; pass --label=COLUMN"


def _texts(
    head: Head, fixed: Mapping[str, Name], label: Name
) -> tuple[Name, Name | None, list[Name]]:
    """Return the text column, the second text of a pair or None, and the other candidates."""
    pair = fixed.get("text_pair")
    free = [c for c in head.columns if c.name not in (label, pair) and not c.is_image]
    candidates = [c for c in free if _is_text(c) and not names.is_identifier(c.name)]
    if "text" in fixed:
        return fixed["text"], pair, []
    if not candidates:
        candidates = _short_texts(head, free)
    named = [c for c in candidates if names.normalized(c.name) in names.TEXTS]
    named.sort(key=lambda c: names.TEXTS.index(names.normalized(c.name)))
    chosen = named[0] if named else max(candidates, key=_mean_length)
    rest: list[Name] = [c.name for c in candidates if c is not chosen]
    both = None if pair is not None else _pair(candidates)
    if both is not None:
        return both[0], both[1], [name for c in candidates if (name := c.name) not in both]
    return chosen.name, pair, rest


def _pair(candidates: Sequence[Column]) -> tuple[Name, Name] | None:
    for index, column in enumerate(candidates):
        others = [other.name for other in candidates[index + 1 :]]
        if isinstance(column.name, str) and (both := names.pair_of(column.name, others)):
            return both
    return None


def _short_texts(head: Head, free: Sequence[Column]) -> list[Column]:
    """Return the columns that may hold texts although their values are short or repeat.

    Raises:
        UserError: there is none, or nothing distinguishes several.
    """
    possible = [c for c in free if not any(LABEL_SEPARATOR in text for text in c.texts)]
    named = [c for c in possible if names.is_common(str(c.name))]
    named = [c for c in named if not names.is_identifier(c.name)]
    if named or len(possible) == 1:
        return named or possible
    columns = listed([column.name for column in head.columns])
    raise UserError(
        f"{head.source.path}: no text column can be identified among {columns}; pass --text=COLUMN"
    )


def _is_text(column: Column) -> bool:
    """Return whether values look like texts: long, mostly different, of several words."""
    texts = column.texts
    if not texts or any(LABEL_SEPARATOR in text for text in texts):
        return False
    with_words = sum(len(text.split()) > 1 or not text.isascii() for text in texts)
    with_letters = sum(any(map(str.isalpha, text)) for text in texts)
    is_various = len(set(texts)) >= _MIN_DISTINCT * len(texts)
    is_prose = 2 * with_words >= len(texts) and 2 * with_letters >= len(texts)
    return is_various and is_prose and _mean_length(column) >= _MIN_CHARACTERS


def _mean_length(column: Column) -> float:
    return sum(map(len, column.texts)) / max(1, len(column.texts))


def _doubts(
    head: Head,
    others: Mapping[str, Sequence[Name]],
    is_certain: bool,
) -> dict[str, str]:
    """Return which columns could not be decided, by key of the config.

    Args:
        head: the first rows.
        others: further candidates, by key of the config.
        is_certain: whether no other column can be the label.
    """
    doubts = {}
    if not is_certain and (doubt := _other_labels(head, others["label"])):
        doubts["label"] = doubt
    for key in ("text", "question"):
        if others.get(key):
            doubts[key] = f"{listed(others[key])} could be the {key} too; --{key}= chooses"
    return doubts


def _class_doubts(head: Head, label: Name) -> dict[str, str]:
    """Return what is suspicious about classes, by key of the config."""
    doubts = {}
    column = head.column(label)
    counts = labels.count(column.texts, labels.separator(column.texts)) if column else {}
    is_declared = column is not None and bool(column.classes)
    if not is_declared and (len(counts) > 100 or 5 * len(counts) > head.rows > 20):
        doubts["label"] = f"{len(counts):,} different labels in {head.rows:,} rows are many"
    elif column and column.texts and len(counts) == 1:
        doubts["label"] = f"the first {head.rows:,} rows are of one class; is the table sorted?"
    return doubts


def _other_labels(head: Head, others: Sequence[Name]) -> str | None:
    """Return which other columns could be the label, or are named so but cannot be read."""
    if others:
        return f"{listed(others)} could be the label too; --label= chooses"
    unread = [c for c in head.columns if c.problem and not c.texts]
    unread = [c for c in unread if names.normalized(c.name) in names.LABELS]
    return f"{listed([unread[0].name])} is no candidate: {unread[0].problem}" if unread else None
