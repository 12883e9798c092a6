"""The template of a row: where its texts and special tokens go, as in a tokenizer description."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tfft.utils.errors import UserError


@dataclass(frozen=True)
class Part:
    """One place in a template: the ids of a text, or a special token.

    Attributes:
        text: "A" or "B"; None for a special token.
        token_id: of the special token, else -1.
        segment: segment id of the part.
    """

    text: str | None
    token_id: int
    segment: int


def templates(description: Mapping[str, Any] | None) -> tuple[list[Part], list[Part]]:
    """Return the templates of a single row and of a pair.

    Args:
        description: the `post_processor` of a tokenizer description.

    Raises:
        UserError: the post-processor has no counterpart here.
    """
    a, b = Part("A", -1, 0), Part("B", -1, 0)
    # ByteLevel changes the offsets of tokens, not their ids.
    if description is None or description["type"] == "ByteLevel":
        return [a], [a, Part("B", -1, 1)]
    kind = description["type"]
    if kind == "Sequence":
        steps = [s for s in description["processors"] if s["type"] != "ByteLevel"]
        if len(steps) > 1:
            raise UserError("tokenizer: more than one post-processor has no in-graph form")
        return templates(steps[0] if steps else None)
    if kind == "TemplateProcessing":
        return _parts(description, "single"), _parts(description, "pair")
    if kind in ("BertProcessing", "RobertaProcessing"):
        cls, sep = (Part(None, description[name][1], 0) for name in ("cls", "sep"))
        # RoBERTa puts two separators between the texts and has one segment.
        if kind == "RobertaProcessing":
            return [cls, a, sep], [cls, a, sep, sep, b, sep]
        b, end = Part("B", -1, 1), Part(None, sep.token_id, 1)
        return [cls, a, sep], [cls, a, sep, b, end]
    raise UserError(f"tokenizer: the post-processor {kind} has no in-graph form")


def _parts(description: Mapping[str, Any], which: str) -> list[Part]:
    parts = []
    for item in description[which]:
        # An item is {"Sequence": ...} or {"SpecialToken": ...}, which may have several ids.
        (kind, value), *_ = item.items()
        if kind == "Sequence":
            parts.append(Part(value["id"], -1, value["type_id"]))
        else:
            ids = description["special_tokens"][value["id"]]["ids"]
            parts += [Part(None, token, value["type_id"]) for token in ids]
    return parts
