"""The n best answers against transformers' `utils_qa.py` (tests/golden/squad.json)."""

import dataclasses
import json

import numpy as np
import pytest

from tests.conftest import GOLDEN
from tests.data.test_answer_positions import byte_offsets
from tfft.evaluation import answer_spans, metrics

GOLDEN_SQUAD = json.loads((GOLDEN / "squad.json").read_text(encoding="utf-8"))
WINDOWS = GOLDEN_SQUAD["windows"]
ROWS = np.array(WINDOWS["rows"])
OFFSETS = np.array(WINDOWS["offsets"])
IS_CONTEXT = np.array(WINDOWS["is_context"], bool)
LOGITS = [np.array(x, np.float32) for x in WINDOWS["logits"]]
NAMES = {"version_2_with_negative": "with_null", "n_best_size": "n_best"}


def n_best_of(settings, offsets=OFFSETS, order=None):
    """Return the n best answers with the settings of run_qa, and the threshold."""
    order = np.arange(len(ROWS)) if order is None else order
    settings = {NAMES.get(name, name): value for name, value in settings.items()}
    size = {"n_best": settings.get("n_best", 20)}
    length = {k: v for k, v in settings.items() if k == "max_answer_length"}
    # In two batches.
    parts = [
        answer_spans.window_candidates(
            *(x[part] for x in (*LOGITS, offsets, IS_CONTEXT)), **size, **length
        )
        for part in (order[:3], order[3:])
    ]
    with_null = settings.get("with_null", False)
    n_best = answer_spans.merge(
        answer_spans.join(parts), ROWS[order], order, with_null=with_null, **size
    )
    return n_best, settings.get("null_score_diff_threshold", 0.0) if with_null else None


@pytest.mark.parametrize("case", GOLDEN_SQUAD["answers"], ids=lambda c: str(c["settings"]))
@pytest.mark.parametrize("in_bytes", [False, True])
def test_answers_equal_transformers(case, in_bytes):
    n_best, threshold = n_best_of(case["settings"], byte_offsets() if in_bytes else OFFSETS)
    assert n_best.spans.dtype == np.int64 and n_best.logits.dtype == np.float32
    records = answer_spans.records(n_best, WINDOWS["contexts"], in_bytes)
    for entries, expected in zip(records, case["n_best"], strict=True):
        # "empty" stands for an answer in a row that has none.
        has_placeholder = expected[0][0] == "empty"
        expected = expected[1:] if has_placeholder else expected
        actual = [[e["text"], e["start_logit"], e["end_logit"]] for e in entries]
        assert actual == [entry[:3] for entry in expected]
        if not has_placeholder:
            probabilities = [entry["probability"] for entry in entries]
            np.testing.assert_allclose(probabilities, [e[3] for e in expected], rtol=2e-6)
    spans = answer_spans.select(n_best, threshold)
    texts = answer_spans.texts(WINDOWS["contexts"], spans, in_bytes)
    assert texts == [text.replace("empty", "") for text in case["answers"]]
    if threshold is not None:
        assert n_best.margins().tolist() == case["margins"]
    best_spans = [tuple(span) for span in spans.tolist()]
    assert all(s == (0, 0) for s, t in zip(best_spans, texts, strict=True) if not t)


def test_the_order_of_batches_changes_nothing():
    for case in GOLDEN_SQUAD["answers"]:
        expected, _ = n_best_of(case["settings"])
        order = np.random.default_rng(1).permutation(len(ROWS))
        actual, _ = n_best_of(case["settings"], order=order)
        for field in dataclasses.fields(expected):
            np.testing.assert_array_equal(
                getattr(actual, field.name), getattr(expected, field.name), field.name
            )


def test_small_chunks_change_nothing(monkeypatch):
    arguments = (*LOGITS, OFFSETS, IS_CONTEXT)
    expected = answer_spans.window_candidates(*arguments)
    monkeypatch.setattr(metrics, "chunks", lambda draws, width: iter([3, 3, 2]))
    actual = answer_spans.window_candidates(*arguments)
    for field in dataclasses.fields(expected):
        np.testing.assert_array_equal(getattr(actual, field.name), getattr(expected, field.name))


def test_padding_with_a_mask_changes_nothing():
    expected = answer_spans.window_candidates(*LOGITS, OFFSETS, IS_CONTEXT, n_best=4)

    def padded(array, value):
        return np.pad(array, [(0, 0), (0, 5)] + [(0, 0)] * (array.ndim - 2), constant_values=value)

    arrays = [padded(x, 99.0) for x in LOGITS] + [padded(OFFSETS, 0), padded(IS_CONTEXT, False)]
    is_token = padded(np.ones_like(IS_CONTEXT), False)
    actual = answer_spans.window_candidates(*arrays, is_token, n_best=4)
    for field in dataclasses.fields(expected):
        np.testing.assert_array_equal(getattr(actual, field.name), getattr(expected, field.name))
    # Without the mask the padding is among the n best positions.
    assert not answer_spans.window_candidates(*arrays, n_best=4).counts.any()


def exhaustive(start_logits, end_logits, is_context, n_best, longest):
    """Return the pairs (start, end) of a window by falling score, pair by pair."""
    length = len(start_logits)
    starts, ends = (
        sorted(range(length), key=lambda i: (-logits[i], i))[:n_best]
        for logits in (start_logits, end_logits)
    )
    pairs = [
        (i, j)
        for i in starts
        for j in ends
        if is_context[i] and is_context[j] and i <= j < i + longest
    ]
    return sorted(pairs, key=lambda p: -(start_logits[p[0]] + end_logits[p[1]]))[:n_best]


@pytest.mark.parametrize(("n_best", "longest", "length"), [(20, 30, 64), (5, 4, 12), (8, 1, 5)])
def test_candidates_equal_a_search_of_all_pairs(n_best, longest, length):
    """Also with equal logits, which are ordered by position."""
    generator = np.random.default_rng(n_best)
    start_logits, end_logits = generator.integers(-4, 5, (2, 30, length)).astype(np.float32)
    is_context = generator.uniform(size=(30, length)) < 0.8
    offsets = np.stack(np.broadcast_arrays(*[[np.arange(length) + d] * 30 for d in (0, 1)]), axis=2)
    candidates = answer_spans.window_candidates(
        start_logits, end_logits, offsets, is_context, n_best=n_best, max_answer_length=longest
    )
    for window in range(30):
        expected = exhaustive(
            start_logits[window], end_logits[window], is_context[window], n_best, longest
        )
        count = candidates.counts[window]
        spans = candidates.spans[window, :count] - [0, 1]
        assert list(map(tuple, spans.tolist())) == expected
        assert not candidates.spans[window, count:].any()


def test_cls_positions_and_the_smallest_null_score():
    zeros = np.zeros((3, 4), np.float32)
    start_logits, end_logits = zeros.copy(), zeros.copy()
    start_logits[[0, 1, 2], [3, 0, 1]] = [5.0, -2.0, 7.0]
    end_logits[[0, 1, 2], [3, 0, 1]] = [1.0, 3.0, 7.0]
    candidates = answer_spans.window_candidates(
        start_logits,
        end_logits,
        np.zeros((3, 4, 2), int),
        np.zeros((3, 4), bool),
        cls_positions=np.array([3, 0, 1]),
    )
    assert candidates.null_logits.tolist() == [[5.0, 1.0], [-2.0, 3.0], [7.0, 7.0]]
    n_best = answer_spans.merge(candidates, [0, 0, 1], with_null=True)
    assert n_best.null_logits.tolist() == [[-2.0, 3.0], [7.0, 7.0]]
    assert n_best.counts.tolist() == [1, 1] and n_best.is_null[:, 0].all()
    assert n_best.margins().tolist() == [1.0, 14.0] and n_best.best().tolist() == [-1, -1]
    assert n_best.probabilities()[:, 0].tolist() == [1.0, 1.0]
    for threshold in (None, 0.0, 20.0):
        assert answer_spans.select(n_best, threshold).tolist() == [[0, 0], [0, 0]]
    without_null = answer_spans.merge(candidates, [0, 0, 1])
    assert without_null.counts.tolist() == [0, 0]
    assert not without_null.probabilities().any()
    assert answer_spans.texts(["a", "b"], answer_spans.select(without_null)) == ["", ""]


def test_no_windows_and_wrong_shapes():
    arrays = [np.zeros((0, 6)), np.zeros((0, 6)), np.zeros((0, 6, 2), int), np.zeros((0, 6), bool)]
    n_best = answer_spans.merge(answer_spans.window_candidates(*arrays), [], with_null=True)
    assert len(n_best.counts) == 0 and answer_spans.records(n_best, []) == []
    assert answer_spans.select(n_best, 0.0).shape == (0, 2)
    with pytest.raises(ValueError, match=r"each row needs a window\. Received: none of row 1"):
        candidates = answer_spans.window_candidates(*LOGITS, OFFSETS, IS_CONTEXT)
        answer_spans.merge(candidates, np.where(ROWS == 1, 0, ROWS))
    for wrong in (IS_CONTEXT[:, 1:], IS_CONTEXT[1:]):
        with pytest.raises(ValueError, match=r"must be \[W, T\].*Received: \[\[8, 20\]"):
            answer_spans.window_candidates(*LOGITS, OFFSETS, wrong)
