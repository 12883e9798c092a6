"""Read questions about contexts: SQuAD's JSON, and flat records as in Hugging Face datasets.

SQuAD 1.1 (Rajpurkar et al. 2016) and 2.0 (Rajpurkar, Jia & Liang 2018) nest the questions:

    {"data": [{"paragraphs": [{"context": ..., "qas": [{"id": ..., "question": ...,
      "answers": [{"text": ..., "answer_start": ...}], "is_impossible": false}]}]}]}

A flat record has the keys id, question, context and answers; its answers are a list as above, or
`{"text": [...], "answer_start": [...]}`. Flat records are the lines of a jsonl file, or the items
of `data` in a JSON file.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfft.config import Source
from tfft.data.records import BadRow, Columns, Row, row_from_mapping, source_files
from tfft.data.text_files import json_object, json_records
from tfft.utils.errors import UserError, nearest
from tfft.utils.reading import LONGEST_TEXT, MIB, is_unicode, read_text

# Bytes. SQuAD 2.0 has 42 MB; a JSON file is parsed at once, so it must fit into the memory.
_LARGEST_FILE = 256 * MIB
_EXCERPT = 40  # characters of a text in a message


@dataclass(frozen=True)
class Question:
    """A question about a context.

    Attributes:
        place: `FILE:ARTICLE/PARAGRAPH/QUESTION`, or `FILE:NUMBER` of a flat record, from 1.
        id: unique in its file.
        question: the text of the question.
        context: the text that holds the answers.
        answers: (text, start in characters) of each answer; `context[start:start + len(text)]` is
            the text. Empty: the context does not answer the question.
    """

    place: str
    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]


class _Invalid(ValueError):
    """What is wrong with a record: the reason of a `BadRow`."""


def rows(source: Source, columns: Columns, key: str) -> Iterator[Row | BadRow]:
    """Yield the columns of the questions: those of `id`, `question`, `context`, `answers`."""
    if isinstance(columns[0], int):
        raise UserError(f"{key}: columns of squad are named, not numbered. Received: {columns[0]}")
    for question in read(source, key):
        if isinstance(question, BadRow):
            yield question
            continue
        record = {
            "id": question.id,
            "question": question.question,
            "context": question.context,
            "answers": [{"text": t, "answer_start": start} for t, start in question.answers],
        }
        yield row_from_mapping(record, columns, question.place)


def read(source: Source, key: str) -> Iterator[Question | BadRow]:
    """Yield the questions of a source; those that cannot be used become a `BadRow`.

    Args:
        source: the files; `.json` files hold one JSON object, all others one object a line.
        key: the source's key in the config, for errors.

    Raises:
        UserError: a file cannot be read, or is not JSON with a list `data`.
    """
    for path in source_files(source, key):
        records = _json_file(path) if path.suffix.lower() == ".json" else _lines(source, path, key)
        places: dict[str, str] = {}  # the place of each id in this file
        for place, record in records:
            question = record if isinstance(record, BadRow) else _parse(place, record)
            if isinstance(question, Question):
                # Only within a file: translations of a data set have the ids of the original.
                first = places.setdefault(question.id, place)
                if first != place:
                    reason = f"the id {_quote(question.id)} is also that of {first}; ids are unique"
                    question = BadRow(place, reason)
            yield question


def _lines(source: Source, path: Path, key: str) -> Iterator[tuple[str, Any]]:
    """Yield the place of each line of a jsonl file with its object, or with a `BadRow`."""
    return json_records(source.model_copy(update={"path": [str(path)]}), key)


def _json_file(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the place of each question of a JSON file with its flat record, or with a `BadRow`."""
    try:
        content = json_object(read_text(path, _LARGEST_FILE))
    except ValueError as error:
        hint = "; name a file with one object a line .jsonl" if "Extra data" in str(error) else ""
        raise UserError(f"{path}: {error}{hint}") from None
    articles = content.get("data") if isinstance(content, dict) else None
    if not isinstance(articles, list):
        received = _kind(content)
        if isinstance(content, dict):
            keys = ", ".join(map(_quote, list(content)[:5])) or "none"
            received = f"data: {_kind(articles)}" if "data" in content else f"the keys {keys}"
        reason = "must hold an object with a list `data`, as SQuAD does"
        raise UserError(f"{path}: {reason}. Received: {received}")
    for number, article in enumerate(articles, 1):
        place = f"{path}:{number}"
        if isinstance(article, dict) and "paragraphs" not in article and "context" in article:
            yield place, article
        else:
            yield from _article(article, place)


def _article(article: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield the place and the flat record of each question of an article, or a `BadRow`."""
    try:
        paragraphs = _field(article, "paragraphs", list)
    except _Invalid as error:
        yield place, BadRow(place, str(error))
        return
    for number, paragraph in enumerate(paragraphs, 1):
        paragraph_place = f"{place}/{number}"
        try:
            questions = _field(paragraph, "qas", list)
        except _Invalid as error:
            yield paragraph_place, BadRow(paragraph_place, str(error))
            continue
        try:
            context = _text(paragraph, "context")
        except _Invalid as error:
            # One bad row for all of its questions, which have the same error.
            if questions:
                yield paragraph_place, BadRow(paragraph_place, str(error), len(questions))
            continue
        for index, question in enumerate(questions, 1):
            question_place = f"{paragraph_place}/{index}"
            # The context goes in last: a question cannot have another.
            is_object = isinstance(question, dict)
            yield question_place, {**question, "context": context} if is_object else question


def _parse(place: str, record: Any) -> Question | BadRow:
    """Return the question of a flat record, or a bad row with the first thing that is wrong."""
    try:
        if not isinstance(record, Mapping):
            raise _Invalid(f"must be an object. Received: {_kind(record)}")
        return Question(
            place,
            _identifier(record),
            _text(record, "question"),
            _text(record, "context"),
            _answers(record),
        )
    except _Invalid as error:
        return BadRow(place, str(error))


def _identifier(record: Mapping[str, Any]) -> str:
    """Return the id of a record; a whole number becomes text."""
    value = record.get("id")
    return str(value) if type(value) is int else _text(record, "id")


def _field(record: Any, key: str, kind: type) -> Any:
    """Return a value of a record, checked for its type.

    Raises:
        _Invalid: the record is no object, the key is missing, or its value is of another type.
    """
    if not isinstance(record, Mapping):
        raise _Invalid(f"must be an object with {key!r}. Received: {_kind(record)}")
    if key not in record:
        keys = [name for name in list(record)[:30] if len(name) <= _EXCERPT]
        raise _Invalid(f"no key {key!r}{nearest(key, keys)}")
    if type(record[key]) is not kind:
        expected = {str: "text", list: "a list", int: "a whole number"}[kind]
        raise _Invalid(f"{key!r} must be {expected}. Received: {_kind(record[key])}")
    return record[key]


def _text(record: Any, key: str) -> str:
    """Return a text of a record, checked: not blank, not too long, no lone surrogate.

    Raises:
        _Invalid: it is none of these, or as `_field`.
    """
    text = _field(record, key, str)
    if not text.strip():
        raise _Invalid(f"{key!r} is empty; fill it or drop the row")
    if len(text) > LONGEST_TEXT:
        raise _Invalid(f"{key!r} has {len(text):,} characters; at most {LONGEST_TEXT:,} are read")
    if not is_unicode(text):
        raise _Invalid(f"{key!r} holds a lone surrogate: it was encoded or truncated wrongly")
    return text


def answers_of(answers: Any, context: str) -> tuple[tuple[str, int], ...]:
    """Return the (text, start in characters) of each answer of a cell.

    Args:
        answers: a list of `{"text", "answer_start"}`, or an object with a list of each.
        context: the text that holds the answers.

    Raises:
        ValueError: an answer is not in the context where it is said to be, or a key or a type is
            wrong.
    """
    return _answers({"answers": answers, "context": context})


def _answers(record: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    """Return the (text, start) of each answer of a flat record.

    Raises:
        _Invalid: as `answers_of`, or the answers contradict `is_impossible`.
    """
    if isinstance(record.get("answers"), Mapping):
        columns = record["answers"]
        texts, starts = _field(columns, "text", list), _field(columns, "answer_start", list)
        if len(texts) != len(starts):
            counts = f"{len(texts)} texts and {len(starts)} starts"
            raise _Invalid(f"'answers' must have a start for each text. Received: {counts}")
        items = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=True)]
    else:
        items = _field(record, "answers", list)
    is_impossible = record.get("is_impossible")  # None: SQuAD 1.1 and flat records lack it
    if is_impossible is not None and type(is_impossible) is not bool:
        raise _Invalid(f"'is_impossible' must be true or false. Received: {_kind(is_impossible)}")
    if is_impossible is not None and is_impossible == bool(items):
        count = f"{len(items)} answer{'' if len(items) == 1 else 's'}"
        state = str(is_impossible).lower()
        raise _Invalid(f"'is_impossible' is {state}, but the question has {count}; correct either")
    return tuple(_answer(i, item, record["context"]) for i, item in enumerate(items, 1))


def _answer(number: int, item: Any, context: str) -> tuple[str, int]:
    """Return the text and the start of an answer, checked against its context."""
    try:
        text, start = _text(item, "text"), _field(item, "answer_start", int)
    except _Invalid as error:
        raise _Invalid(f"answer {number}: {error}") from None
    if start >= 0 and context.startswith(text, start):
        return text, start
    if 0 <= start < len(context):
        excerpt = _quote(context[start : start + len(text)])
        head = f"{_quote(text)} is not at {start:,} of the context, where {excerpt} is"
    else:
        head = f"'answer_start' must be in the context, 0 to {len(context) - 1:,}"
    head = f"answer {number}: {head}"
    first = context.find(text)
    if first < 0:
        raise _Invalid(f"{head}; the context does not hold it")
    if context.find(text, first + 1) < 0:
        raise _Invalid(f"{head}; it occurs once, at {first:,}: set 'answer_start' to that")
    raise _Invalid(f"{head}; it occurs several times, first at {first:,}: correct 'answer_start'")


def _kind(value: Any) -> str:
    """Return how a message names the type of a JSON value."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    names |= {int: "a whole number", float: "a number", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _quote(text: str) -> str:
    """Return the beginning of a text in quotes, on one line and printable."""
    return repr(text[:_EXCERPT]) + ("..." if len(text) > _EXCERPT else "")
