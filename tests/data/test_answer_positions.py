"""Tokens of answers against run_qa of transformers (tests/golden/squad.json)."""

import json

import numpy as np
import pytest

from tests.conftest import GOLDEN
from tfft.data import answer_positions

GOLDEN_SQUAD = json.loads((GOLDEN / "squad.json").read_text(encoding="utf-8"))
WINDOWS = GOLDEN_SQUAD["windows"]
ROWS = np.array(WINDOWS["rows"])
OFFSETS = np.array(WINDOWS["offsets"])
IS_CONTEXT = np.array(WINDOWS["is_context"], bool)


def byte_offsets():
    """Return the offsets of the windows in UTF-8 bytes."""
    offsets = OFFSETS.copy()
    for window, row in enumerate(ROWS):
        context = WINDOWS["contexts"][row]
        for token in np.flatnonzero(IS_CONTEXT[window]):
            start, end = OFFSETS[window, token]
            offsets[window, token] = answer_positions.byte_span(context, context[start:end], start)
    return offsets


@pytest.mark.parametrize("unit", ["characters", "bytes"])
def test_targets_equal_run_qa(unit):
    offsets = byte_offsets() if unit == "bytes" else OFFSETS
    in_last_token = 0
    for (row, text, start), expected in zip(
        GOLDEN_SQUAD["spans"], GOLDEN_SQUAD["targets"], strict=True
    ):
        windows = row == ROWS
        context = WINDOWS["contexts"][row]
        span = (start, start + len(text)) if text else answer_positions.NO_ANSWER
        if unit == "bytes" and text:
            span = answer_positions.byte_span(context, text, start)
        first, last = answer_positions.token_targets(
            [span] * windows.sum(), offsets[windows], IS_CONTEXT[windows]
        )
        expected_first, expected_last = map(np.array, expected)
        # run_qa counts on to the end of the window if the answer begins in its last context token.
        ends = IS_CONTEXT.shape[1] - 1 - IS_CONTEXT[windows][:, ::-1].argmax(axis=1)
        is_beyond = expected_first > expected_last
        assert (expected_first[is_beyond] == IS_CONTEXT.shape[1] - 1).all()
        expected_first = np.where(is_beyond, ends, expected_first)
        in_last_token += is_beyond.sum()
        np.testing.assert_array_equal(first, expected_first)
        np.testing.assert_array_equal(last, expected_last)
    assert in_last_token == 2


def test_targets_cover_the_answer():
    """Every answer inside of a window is the text of its tokens, in one window at least."""
    offsets = byte_offsets()
    for row, text, start in GOLDEN_SQUAD["spans"]:
        windows = np.flatnonzero(row == ROWS)
        answer = answer_positions.byte_span(WINDOWS["contexts"][row], text, start)
        first, last = answer_positions.token_targets(
            [answer] * len(windows), offsets[windows], IS_CONTEXT[windows]
        )
        for window, i, j in zip(windows, first, last, strict=True):
            if i and text:
                span = offsets[window, i, 0], offsets[window, j, 1]
                assert answer_positions.span_text(WINDOWS["contexts"][row], *span) == text


def test_padding_and_answers_within_tokens():
    # [CLS] question [SEP] "red" "barns" [SEP] [PAD] in two windows; "barns" alone in the second.
    offsets = np.array([[[0, 0], [0, 4], [0, 0], [0, 3], [4, 9], [0, 0], [0, 0]]] * 2)
    is_context = np.zeros((2, 7), bool)
    is_context[:, 3:5] = True
    is_context[1, 3] = False

    def targets(*spans):
        first, last = answer_positions.token_targets(spans, offsets, is_context)
        return first.tolist(), last.tolist()

    assert targets((0, 3), (0, 3)) == ([3, 0], [3, 0])
    assert targets((4, 8), (5, 9)) == ([4, 4], [4, 4])  # "barn", "arns"
    assert targets((2, 5), (3, 5)) == ([3, 0], [4, 0])  # "d b"; " b" begins before the window
    assert targets((0, 0), answer_positions.NO_ANSWER) == ([3, 0], [3, 0])
    assert targets((4, 10), (4, 10)) == ([0, 0], [0, 0])
    empty = answer_positions.token_targets([], np.zeros((0, 5, 2)), np.zeros((0, 5), bool))
    assert [x.shape for x in empty] == [(0,), (0,)]
    no_tokens = answer_positions.token_targets(
        [(0, 1)], np.zeros((1, 0, 2)), np.zeros((1, 0), bool)
    )
    assert [x.tolist() for x in no_tokens] == [[0], [0]]
    no_context = np.zeros_like(is_context)
    first, _ = answer_positions.token_targets([(0, 3)] * 2, offsets, no_context)
    assert first.tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"must be \[2, 2\].*Received: \[1, 2\], \[2, 7, 2\]"):
        targets((0, 3))


def test_spans_in_bytes_are_whole_characters():
    context = "Zoë 小山 🐄!"
    for text in ("Zoë", "小", "小山 🐄", "🐄!"):
        start = context.index(text)
        span = answer_positions.byte_span(context, text, start)
        assert context.encode()[slice(*span)].decode() == text
        assert answer_positions.span_text(context, *span) == text
    start, end = answer_positions.byte_span(context, "小山", 4)
    # Within the first and the last character, as tokens of byte-level BPE are.
    assert answer_positions.span_text(context, start + 1, end - 1) == "小山"
    assert answer_positions.span_text(context, start + 2, start + 3) == "小"
    assert answer_positions.span_text(context, 0, 0) == ""
    assert answer_positions.span_text(context, 0, 99) == context
