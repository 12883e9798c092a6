"""Names of columns that are common in public data sets, the most telling first."""

import re
from collections.abc import Sequence

CERTAIN_LABELS = ("label", "labels", "class", "category")  # the others may be a further property
LABELS = (
    *CERTAIN_LABELS,
    "categories",
    "target",
    "sentiment",
    "emotion",
    "emotions",
    "intent",
    "topic",
    "topics",
    "tags",
    "tag",
    "genre",
    "genres",
    "stars",
    "rating",
    "polarity",
    "type",
    "y",
    "score",
    "coarselabel",
    "labeltext",
    "labelname",
    "classname",
    "labelid",
    "classid",
    "categoryid",
    "species",
    "breed",
    "language",
    "lang",
    "isduplicate",
    "issarcastic",
    "toxic",
    "spam",
)
TEXTS = (
    "text",
    "sentence",
    "review",
    "reviewtext",
    "content",
    "comment",
    "commenttext",
    "tweet",
    "message",
    "question",
    "title",
    "headline",
    "document",
    "article",
    "body",
    "utterance",
    "query",
    "description",
    "abstract",
    "sms",
    "input",
    "premise",
)
# First and second text of a pair.
PAIRS = (
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "context"),
    ("question", "answer"),
    ("query", "document"),
    ("query", "passage"),
    ("claim", "evidence"),
    ("text", "textpair"),
)
# Lists of words, and the list of a tag for each of them or of entities.
TOKENS = ("tokens", "words", "token", "word", "text", "sentence", "tokenizedtext")
TAGS = (
    "nertags",
    "ner",
    "entities",
    "spans",
    "tags",
    "labels",
    "label",
    "nerlabels",
    "entitytags",
    "biotags",
    "bio",
    "iobtags",
    "iob",
    "slots",
    "tag",
    "chunktags",
    "postags",
    "upos",
    "xpos",
    "pos",
)
# Questions about contexts.
QUESTIONS = ("question", "questiontext", "query")
CONTEXTS = ("context", "passage", "paragraph", "document", "article", "text")
ANSWERS = ("answers", "answer")
IDENTIFIERS = re.compile(
    r"(.*[\W_])?(id|idx|index|uuid|guid|key|date|time|timestamp|url)|unnamed: \d+"
)


def normalized(name: str | int) -> str:
    """Return the letters and digits of a name in lower case: `Review_Text` -> `reviewtext`."""
    return re.sub(r"[\W_]+", "", str(name).casefold())


def position(common: Sequence[str], name: str | int) -> int:
    """Return the position of a name among common ones, after the last one if it is not there."""
    plain = normalized(name)
    return common.index(plain) if plain in common else len(common)


def is_role(name: str) -> bool:
    """Return whether a name is one that tables use for labels or texts."""
    plain = normalized(name)
    return plain in LABELS or plain in TEXTS or any(plain in pair for pair in PAIRS)


def is_common(name: str) -> bool:
    """Return whether a name is one that tables use for labels, texts or identifiers."""
    return is_role(name) or is_identifier(name)


def is_identifier(name: str | int) -> bool:
    """Return whether a column's name says that it identifies the row, not what is in it.

    `user_id` does; `label_id` is a label.
    """
    match = IDENTIFIERS.fullmatch(name.strip().casefold()) if isinstance(name, str) else None
    return match is not None and normalized(match[1] or "") not in LABELS


def pair_of(name: str | int, others: list[str | int]) -> tuple[str | int, str | int] | None:
    """Return the names of the two texts of a pair that holds `name`, in order, or None.

    They are a pair of `PAIRS`, or differ in their last character: 1 and 2, or a and b.
    """
    plain = normalized(name)
    for other in others:
        first, second = sorted((plain, normalized(other)))
        is_series = first[:-1] == second[:-1] and first[-1:] + second[-1:] in ("12", "ab")
        if is_series and first[:-1]:
            return (name, other) if first == plain else (other, name)
        if (plain, normalized(other)) in PAIRS:
            return name, other
        if (normalized(other), plain) in PAIRS:
            return other, name
    return None
