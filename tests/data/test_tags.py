"""Tags: schemes, spans as seqeval's (golden file), alignment with tokens."""

import json
import random
from pathlib import Path

import pytest

from tfft.data import conll, tags
from tfft.data.tags import Span
from tfft.utils.errors import UserError

CASES = json.loads((Path(__file__).parents[1] / "golden" / "entities.json").read_text("utf-8"))
SPANS = [
    Span("PER", 0, 1),
    Span("PER", 1, 3),
    Span("a-b-c", 3, 6),
    Span("PER", 7, 9),
    Span("LOC", 9, 10),
]
# The same entities in each scheme.
TAGS = {
    "IOB2": "B-PER B-PER I-PER B-a-b-c I-a-b-c I-a-b-c O B-PER I-PER B-LOC O",
    "IOB1": "I-PER B-PER I-PER I-a-b-c I-a-b-c I-a-b-c O I-PER I-PER I-LOC O",
    "BIOES": "S-PER B-PER E-PER B-a-b-c I-a-b-c E-a-b-c O B-PER E-PER S-LOC O",
    "BILOU": "U-PER B-PER L-PER B-a-b-c I-a-b-c L-a-b-c O B-PER L-PER U-LOC O",
    "BMES": "S-PER B-PER E-PER B-a-b-c M-a-b-c E-a-b-c O B-PER E-PER S-LOC O",
}


def detect(*rows):
    return tags.detect((f"t.conll:{n}", row.split()) for n, row in enumerate(rows, 1))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['scheme']} {case['name']}")
def test_spans_are_those_of_seqeval(case):
    for side in ("gold", "predicted"):
        for text, expected in zip(case[side], case[f"{side}_entities"], strict=True):
            entities = tags.spans(text.split(), case["scheme"])
            # seqeval's end is the last token.
            assert [[name, start, end - 1] for name, start, end in entities] == expected
            iob2 = tags.to_iob2(text.split(), case["scheme"])
            assert tags.spans(iob2) == entities


@pytest.mark.parametrize("scheme", TAGS)
def test_every_scheme_is_detected_and_converted(scheme):
    assert detect("O O", TAGS[scheme]) == scheme
    assert tags.spans(TAGS[scheme].split(), scheme) == SPANS
    assert tags.to_iob2(TAGS[scheme].split(), scheme) == TAGS["IOB2"].split()


def test_types_without_a_prefix():
    text = "PER PER O ab-c-d ab-c-d LOC PER-B"
    assert detect(text) == "IO"
    expected = "B-PER I-PER O B-ab-c-d I-ab-c-d B-LOC B-PER-B"
    assert tags.to_iob2(text.split(), "IO") == expected.split()
    # A single letter is a type too, unless all tags are prefixes.
    assert detect("N V S") == "IO"
    assert detect("B I O") == "IOB2"
    assert tags.spans(["B", "I", "O", "B-"]) == [Span("_", 0, 2), Span("_", 3, 4)]


def test_detection_of_tags_that_fit_several_schemes():
    assert detect() == detect("O O") == detect("B-X O") == "IOB2"
    assert detect("I-X I-X O") == detect("I-X B-X") == "IOB1"
    assert detect("I-PER", "B-PER") == "IOB2"  # a row begins anew: one malformed entity each
    # The scheme with fewer malformed entities.
    assert detect(*["B-X I-X O B-X"] * 5, "O I-X") == "IOB2"
    assert detect(*["I-X I-X O I-X"] * 5, "O B-X") == "IOB1"
    assert detect("S-X O") == detect("I-X E-X") == "BIOES"
    assert detect("U-X O") == detect("B-X L-X") == "BILOU"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["B-PER", "O X-PER"],
            r"t\.conll:2: tag 'X-PER' has the unknown prefix 'X'; valid: B, E, ",
        ),
        (["b-PER"], r"t\.conll:1: tag 'b-PER' has the unknown prefix 'b'; did you mean 'B'\?"),
        (["O-PER"], r"tag 'O-PER' has the unknown prefix 'O'; valid: "),
        (
            ["B-PER O", "PER"],
            r":2: tag 'PER' has no prefix, but 'B-PER' has one; write B-PER and I",
        ),
        (["B-PER 0"], r":1: tag '0' has no prefix, but 'B-PER' has one; did you mean 'O'\?"),
        (["O PER-B PER-I"], r":1: tag 'PER-B' has its prefix at the end; write B-PER instead"),
        (
            ["B-X E-X", "U-X"],
            r"no scheme .*BMES: B M E S\)\. Received: .*E-X \(t\.conll:1\), U-X \(t",
        ),
    ],
)
def test_tags_of_no_scheme_are_refused(rows, message):
    with pytest.raises(UserError, match=message):
        detect(*rows)


@pytest.mark.parametrize(
    ("tag", "scheme", "message"),
    [
        ("X-PER", "IOB2", r"^tag 'X-PER' has the unknown prefix 'X'; valid: B, I \(scheme IOB2\)"),
        ("E-PER", "IOB2", r"^tag 'E-PER' has the unknown prefix 'E'; valid: B, I"),
        ("PER", "BIOES", r"^tag 'PER' is not one of scheme BIOES; valid: O and .* B-, I-, E-, S-"),
        ("BPER", "IOB2", r"^tag 'BPER' is not one of scheme IOB2"),
        ("", "IOB2", r"^tag '' is not one of scheme IOB2"),
        ("", "IO", "^a tag is empty; write O"),
    ],
)
def test_a_tag_of_another_scheme_is_refused(tag, scheme, message):
    with pytest.raises(ValueError, match=message):
        tags.spans(["O", tag], scheme)


def test_tags_from_spans():
    assert tags.from_spans(reversed(SPANS), 11) == TAGS["IOB2"].split()
    assert tags.from_spans([], 2) == ["O", "O"]
    generator = random.Random(0)
    for _ in range(200):
        cuts = sorted(generator.sample(range(20), 8))
        entities = [Span(generator.choice("ab"), *cuts[i : i + 2]) for i in range(0, 8, 2)]
        assert tags.spans(tags.from_spans(entities, 20)) == entities
    with pytest.raises(ValueError, match=r"overlap: a \[1, 3\) and b \[2, 4\); a token"):
        tags.from_spans([Span("b", 2, 4), Span("a", 1, 3)], 5)
    with pytest.raises(ValueError, match="overlap"):
        tags.from_spans([Span("a", 1, 3)] * 2, 5)
    for start, end in ((-1, 2), (2, 2), (3, 2), (4, 6)):
        with pytest.raises(ValueError, match=r"out of range: there are 5 tokens \(0 to 5"):
            tags.from_spans([Span("a", start, end)], 5)


def test_names_of_tags():
    assert tags.names(["b", "a", "b"]) == ["O", "B-a", "I-a", "B-b", "I-b"]


TEXT = "In New York's  bars 😀."
#       [CLS] In New York ' s _bars 😀 (in two tokens) . [SEP]
OFFSETS = [(0, 0), (0, 2), (3, 6), (7, 11), (11, 12), (12, 13), (14, 19), (20, 21), (20, 21)]
OFFSETS += [(21, 22), (0, 0)]


def test_spans_of_characters_on_tokens():
    entities = [Span("b", 15, 19), Span("a", 3, 11), Span("c", 2, 14), Span("e", 20, 21)]
    aligned, misaligned = tags.align(TEXT, entities, OFFSETS)
    # A neighbour that only touches the entity is no part of it.
    assert tags.align(TEXT, [Span("f", 12, 13)], OFFSETS)[0] == [Span("f", 5, 6)]
    # White space at the ends of an entity and of a token does not count.
    assert aligned == [Span("b", 6, 7), Span("a", 2, 4), Span("c", 2, 6), Span("e", 7, 9)]
    assert not misaligned
    assert tags.align(TEXT, [], OFFSETS) == tags.align("", [], []) == ([], [])


def test_spans_that_begin_or_end_within_a_token_are_reported():
    entities = [Span("a", 4, 6), Span("b", 7, 10), Span("c", 7, 11), Span("d", 5, 9)]
    aligned, misaligned = tags.align(TEXT, entities, OFFSETS)
    assert aligned == [Span("c", 3, 4)]
    assert [m.entity for m in misaligned] == [entities[0], entities[1], entities[3]]
    assert [m.text for m in misaligned] == ["ew", "Yor", "w Yo"]
    assert [m.tokens for m in misaligned] == [Span("a", 2, 3), Span("b", 3, 4), Span("d", 2, 4)]
    assert misaligned[2].reason == "does not begin and end with its tokens, 'New York'"
    # Behind the last token of a text that was cut; partly behind it.
    entities = [Span("a", 15, 19), Span("b", 7, 19)]
    aligned, misaligned = tags.align(TEXT, entities, OFFSETS[:4])
    assert [m.tokens for m in misaligned] == [None, Span("b", 3, 4)]
    assert misaligned[0].reason.startswith("has no token")


def test_impossible_spans_of_characters_are_refused():
    for start, end in ((-1, 2), (2, 2), (20, 23)):
        with pytest.raises(ValueError, match=r"entity a \[.*: there are 22 characters"):
            tags.align(TEXT, [Span("a", start, end)], OFFSETS)
    with pytest.raises(ValueError, match=r"entity a \[13, 15\) holds only white space"):
        tags.align(TEXT, [Span("a", 13, 15)], OFFSETS)


def test_real_tags_survive_every_scheme(real_data):
    """WNUT-17's development set, rewritten in BIOES by hand."""
    path = real_data / "wnut17" / "emerging.dev.conll"
    if not path.is_file():
        pytest.skip("no wnut17")
    rows = list(conll.sentences(path))
    assert tags.detect((row.place, row.values[1]) for row in rows) == "IOB2"
    bioes = []
    for row in rows:
        iob2 = list(row.values[1])
        assert tags.to_iob2(iob2, "IOB2") == iob2  # well-formed
        converted = []
        for tag, following in zip(iob2, [*iob2[1:], "O"], strict=True):
            ends = not following.startswith("I")
            converted.append(tag.replace("B-", "S-").replace("I-", "E-") if ends else tag)
        bioes.append(converted)
        assert tags.to_iob2(converted, "BIOES") == iob2
    assert tags.detect(("", row) for row in bioes) == "BIOES"
