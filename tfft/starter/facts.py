"""What a config is written from: the request, the first rows, and what they are."""

from collections import Counter
from dataclasses import dataclass

from tfft.config import TASK_SECTIONS
from tfft.starter import head as heads
from tfft.starter import questions, splits, tagged
from tfft.starter.head import Head
from tfft.starter.request import Request, source_of
from tfft.starter.roles import Roles, decide, listed
from tfft.utils.errors import UserError


@dataclass(frozen=True)
class Facts:
    """What the sections are written from.

    Attributes:
        request: what the user asks for.
        head: the first rows of the training data.
        roles: their columns.
        counts: their classes with the number of rows of each, or types of entities with the number
            of entities, or the rows with and without an answer; empty for numbers.
        texts: the texts of each row, those of a pair or of a question and its context joined.
    """

    request: Request
    head: Head
    roles: Roles
    counts: Counter[str]
    texts: list[str]

    @property
    def is_text(self) -> bool:
        """Whether the rows are texts, not images."""
        return self.roles.image is None

    @property
    def task(self) -> str:
        """Name of the task."""
        return next(
            name
            for name, section in TASK_SECTIONS.items()
            if section.targets == self.roles.targets
            and (section.columns == ("image",)) != self.is_text
        )

    @property
    def rows(self) -> str:
        """How many rows there are, and how many of them were read."""
        if self.head.total is None:
            return "no rows yet: the set is not downloaded"
        if self.head.complete or self.head.rows == self.head.total:
            return f"{self.head.total:,} rows"
        return f"the first {self.head.rows:,} of about {self.head.total:,} rows"


def look(request: Request) -> Facts:
    """Read the first rows of the training data and decide what they are.

    Raises:
        UserError: the data cannot be read, a role has no column, or there is one class alone.
    """
    source = splits.training(source_of(request.data, request.encoding))
    has_header = (not request.numbered) if request.columns else None
    head = heads.read(source, "data.train", has_header, request.columns.get("image"))
    roles = decide(head, request.columns)
    return Facts(request, head, roles, _counts(head, roles), _texts(head, roles))


def _texts(head: Head, roles: Roles) -> list[str]:
    """Return the texts of each row, several joined; tokens as the text they become."""
    if roles.targets == "tags":
        return [row.values[0] for row in tagged.read(head.source, roles.columns, "data.train")]
    parts = [head.column(name) for name in roles.texts]
    rows = zip(*(column.values for column in parts if column is not None), strict=True)
    return [" ".join(text for text in row if text) for row in rows if any(row)]


def _counts(head: Head, roles: Roles) -> Counter[str]:
    """Return the rows of each class, or the entities of each type; see `splits.count`.

    Raises:
        UserError: all rows are of one class, no word belongs to an entity, or no question has an
            answer.
    """
    counts = splits.count(head.source, head, roles, "data.train")
    if roles.targets == "tags" and head.complete and not counts:
        raise UserError(
            f"{head.source.path}: no entity in column {listed([roles.label])}; --label= names "
            "another column"
        )
    if roles.targets == "answers" and head.complete and not counts[questions.ANSWER]:
        raise UserError(f"{head.source.path}: no question has an answer")
    if roles.targets in ("class", "labels") and head.complete and len(counts) < 2:
        column = head.column(roles.label)
        classes = listed(list(counts))
        reason = f": {column.problem}" if column and column.problem else ""
        hint = "" if head.source.source == "images" else "; --label= names another column"
        raise UserError(
            f"{head.source.path}: at least two classes are needed; column "
            f"{listed([roles.label])} holds {classes or 'none'}{reason}{hint}"
        )
    return counts
