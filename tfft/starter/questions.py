"""Recognise questions about contexts: SQuAD files, or a column of answers with their starts.

The answers themselves are read by `data.squad`, as training reads them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tfft.config.data import FORMAT_COLUMNS
from tfft.data import squad
from tfft.starter import names
from tfft.starter.head import Column, Head, Name
from tfft.utils.errors import UserError

ANSWER, NO_ANSWER = "answer", "no answer"
_KEYS = {"text", "answer_start"}  # of an answer
_MOST = 0.95  # share of the cells that decides what they are; data have mistakes


@dataclass(frozen=True)
class QuestionColumns:
    """The columns of questions, their contexts and answers.

    Attributes:
        question: column of the questions.
        context: column of the texts that hold the answers.
        label: column of the answers.
        others: further candidates, by key of the config.
    """

    question: Name
    context: Name
    label: Name
    others: Mapping[str, Sequence[Name]]


def columns(head: Head, fixed: Mapping[str, Name]) -> QuestionColumns | None:
    """Return the columns of questions about contexts, None if the rows have no answers.

    Args:
        head: the first rows.
        fixed: columns that the user named, by key of the config.

    Raises:
        UserError: `fixed` names a column that such rows do not have, or no column holds the
            answers or the questions.
    """
    if head.source.source == "squad":
        return _of_squad(fixed)
    if fixed.keys() & {"text", "text_pair", "image"}:
        return None
    answers = [c for c in head.columns if _are_answers(c) and fixed.get("label", c.name) == c.name]
    if not answers:
        if fixed.keys() & {"question", "context"}:
            raise UserError(
                f"{head.source.path}: no column holds answers, objects with a text and an "
                "answer_start; --label= names it"
            )
        return None
    label = min(answers, key=lambda c: names.position(names.ANSWERS, c.name)).name
    context = _context(head, fixed, label)
    question, candidates = _question(head, fixed, (context, label))
    others = {"label": [c.name for c in answers if c.name != label], "question": candidates}
    return QuestionColumns(question, context, label, others)


def count(head: Head, context: Name, label: Name) -> Counter[str]:
    """Return the number of rows with and without an answer, of those that can be used."""
    counts = (n for n in _answers(head, context, label) if isinstance(n, int))
    return Counter(ANSWER if n else NO_ANSWER for n in counts)


def _of_squad(fixed: Mapping[str, Name]) -> QuestionColumns:
    columns = FORMAT_COLUMNS["squad"]
    for key, name in fixed.items():
        if columns.get(key) != name:
            raise UserError(
                f"--{key}: rows of SQuAD files have question, context and answers alone"
            )
    return QuestionColumns(**columns, others={"label": ()})


def _answers(head: Head, context: Name, label: Name) -> Iterator[int | str]:
    """Yield the number of answers of each row, or why they cannot be used."""
    texts, answers = head.column(context), head.column(label)
    if texts is None or answers is None:
        return
    # One of them is empty if no row has such a value.
    for text, cell in zip(texts.values, answers.nested, strict=False):
        if text is None or cell is None:
            continue
        try:
            yield len(squad.answers_of(cell, text))
        except ValueError as error:
            yield str(error)


def _are_answers(column: Column) -> bool:
    """Return whether cells are objects with texts and starts, or lists of these; some are empty."""
    cells = [cell for cell in column.nested if cell]
    items = [cell if isinstance(cell, Mapping) else cell[0] for cell in cells]
    answers = sum(isinstance(item, Mapping) and item.keys() >= _KEYS for item in items)
    return column.is_answers or (bool(cells) and answers >= _MOST * len(cells))


def _context(head: Head, fixed: Mapping[str, Name], label: Name) -> Name:
    """Return the column that holds the answers where they are said to start.

    Raises:
        UserError: there is none.
    """
    candidates = [c.name for c in head.columns if c.name not in (label, fixed.get("question"))]
    candidates = [name for name in candidates if fixed.get("context", name) == name]
    rows = {name: count(head, name, label)[ANSWER] for name in candidates}
    # Of equals the one with the most telling name.
    candidates.sort(key=lambda name: (-rows[name], names.position(names.CONTEXTS, name)))
    if candidates and (rows[candidates[0]] or not head.rows):
        return candidates[0]
    reason = f"no column holds the answers of column {label!r} where they start"
    if candidates:
        problems = (n for n in _answers(head, candidates[0], label) if isinstance(n, str))
        problem = next(problems, "no row has an answer")
        reason += f". In column {candidates[0]!r}: {problem}"
    raise UserError(f"{head.source.path}: {reason}")


def _question(
    head: Head, fixed: Mapping[str, Name], taken: Sequence[Name]
) -> tuple[Name, list[Name]]:
    """Return the column of questions, and other candidates if its name does not tell.

    Without a common name, it is the column with the most different texts of several words.

    Raises:
        UserError: there is none.
    """
    if "question" in fixed:
        return fixed["question"], []
    free = [c for c in head.columns if c.name not in taken and not names.is_identifier(c.name)]
    ranks = {c.name: names.position(names.QUESTIONS, c.name) for c in free}
    texts = {c.name: len({t for t in c.texts if " " in t.strip() or not t.isascii()}) for c in free}
    named = [name for name, rank in ranks.items() if rank < len(names.QUESTIONS)]
    if named:
        return min(named, key=ranks.__getitem__), []
    candidates = sorted((name for name in texts if texts[name]), key=lambda name: -texts[name])
    if not candidates:
        raise UserError(
            f"{head.source.path}: no column of questions can be identified; pass --question=COLUMN"
        )
    most = texts[candidates[0]]
    return candidates[0], [name for name in candidates[1:] if 2 * texts[name] >= most]
