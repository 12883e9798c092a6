"""Names of columns that are common in public data sets, the most telling first."""

import re

LABELS = (
    "label",
    "labels",
    "class",
    "category",
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
IDENTIFIERS = re.compile(
    r"(.*[\W_])?(id|idx|index|uuid|guid|key|date|time|timestamp|url)|unnamed: \d+"
)


def normalized(name: str | int) -> str:
    """Return the letters and digits of a name in lower case: `Review_Text` -> `reviewtext`."""
    return re.sub(r"[\W_]+", "", str(name).casefold())


def is_common(name: str) -> bool:
    """Return whether a name is one that tables use for labels, texts or identifiers."""
    plain = normalized(name)
    in_pairs = any(plain in pair for pair in PAIRS)
    return plain in LABELS or plain in TEXTS or in_pairs or is_identifier(name)


def is_identifier(name: str | int) -> bool:
    """Return whether a column's name says that it identifies the row, not what is in it."""
    return isinstance(name, str) and IDENTIFIERS.fullmatch(name.strip().casefold()) is not None


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
