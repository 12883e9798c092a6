"""The best answers against transformers' `utils_qa.py` (tests/golden/squad.json)."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import GOLDEN
from tests.data.test_answer_positions import byte_offsets
from tfft.evaluation import answer_spans, metrics
from tfft.evaluation.answer_spans import Candidates
from tfft.evaluation.answers import AnswerRecords
from tfft.tasks import passages
from tfft.utils.ragged import Ragged

GOLDEN_SQUAD = json.loads((GOLDEN / "squad.json").read_text(encoding="utf-8"))
WINDOWS = GOLDEN_SQUAD["windows"]
ROWS = np.array(WINDOWS["rows"])
OFFSETS = np.array(WINDOWS["offsets"])
IS_CONTEXT = np.array(WINDOWS["is_context"], bool)
LOGITS = [np.array(x, np.float32) for x in WINDOWS["logits"]]


class Split:
    """Windows as a split of questions: what `AnswerRecords` reads of a `Dataset`."""

    def __init__(self, offsets, is_context=IS_CONTEXT, rows=ROWS, contexts=WINDOWS["contexts"]):
        windows, length = is_context.shape
        self.examples, self.example_rows = np.arange(windows), np.asarray(rows, np.int64)
        self.lengths = np.full(windows, length)
        self.token_offsets = [
            Ragged(np.where(is_context, side, -1).ravel(), np.cumsum(self.lengths))
            for side in np.moveaxis(offsets, 2, 0)
        ]
        self.targets = Ragged(np.zeros((0, 2), np.int32), np.zeros(len(contexts), np.int64))
        self.contexts = contexts

    def __len__(self):
        return len(self.contexts)

    def raw_row(self, position):
        return "", self.contexts[position]


def arguments_of(settings):
    """Return n_best, max_answer_length, with_null of settings of run_qa, and the threshold.

    The threshold is infinite where every row has an answer.
    """
    with_null = settings.get("version_2_with_negative", False)
    threshold = settings.get("null_score_diff_threshold", 0.0) if with_null else np.inf
    sizes = settings.get("n_best_size", 20), settings.get("max_answer_length", 30)
    return (*sizes, with_null), threshold


def records_of(settings, offsets, order):
    """Return the records of the golden windows, in two batches, and the n best answers."""
    arguments, _ = arguments_of(settings)
    records = AnswerRecords(Split(offsets), *arguments)
    for part in (order[:3], order[3:]):
        records.put(part, np.stack(LOGITS, axis=2)[part])
    n_best, _, with_null = arguments
    return records, answer_spans.merge(
        Candidates(**records.arrays), ROWS, n_best=n_best, with_null=with_null
    )


def served(offsets, is_context, rows, contexts, logits, arguments, threshold):
    """Return the answers of the model that is served, by name."""
    starts, ends = np.where(is_context[..., None], offsets, 0).astype(np.int32).transpose(2, 0, 1)
    tokens = {"own": is_context, "starts": starts, "ends": ends}
    tokens |= {"row": np.asarray(rows, np.int32), "text": contexts}
    tokens = {name: tf.constant(values) for name, values in tokens.items()}
    n_best, max_answer_length, _ = arguments
    outputs = passages.decode(tf.constant(logits), tokens, n_best, max_answer_length, threshold)
    return {name: values.numpy() for name, values in outputs.items()}


@pytest.mark.parametrize("case", GOLDEN_SQUAD["answers"], ids=lambda c: str(c["settings"]))
def test_answers_equal_transformers(case):
    offsets, contexts = byte_offsets(), WINDOWS["contexts"]
    _, n_best = records_of(case["settings"], offsets, np.arange(len(ROWS)))
    assert n_best.spans.dtype == np.int64 and n_best.logits.dtype == np.float32
    for row, (context, expected) in enumerate(zip(contexts, case["n_best"], strict=True)):
        # "empty" stands for an answer in a row that has none.
        has_placeholder = expected[0][0] == "empty"
        expected = expected[1:] if has_placeholder else expected
        count = n_best.counts[row]
        texts = answer_spans.texts([context] * count, n_best.spans[row, :count])
        actual = zip(texts, *n_best.logits[row, :count].T.tolist(), strict=True)
        assert list(map(list, actual)) == [entry[:3] for entry in expected]
        if not has_placeholder:
            probabilities = n_best.probabilities()[row, :count]
            np.testing.assert_allclose(probabilities, [e[3] for e in expected], rtol=2e-6)
    _, threshold = arguments_of(case["settings"])
    if threshold < np.inf:
        assert n_best.margins().tolist() == case["margins"]
    is_null = (n_best.best() < 0) | (n_best.margins() > threshold)
    spans = np.where(is_null[:, None], 0, n_best.spans[np.arange(len(is_null)), n_best.best()])
    texts = answer_spans.texts(contexts, spans)
    assert texts == [text.replace("empty", "") for text in case["answers"]]


@pytest.mark.parametrize("case", GOLDEN_SQUAD["answers"], ids=lambda c: str(c["settings"]))
def test_evaluated_and_served_answers_equal_transformers(case):
    offsets, contexts = byte_offsets(), WINDOWS["contexts"]
    answers = [text.replace("empty", "") for text in case["answers"]]
    arguments, threshold = arguments_of(case["settings"])
    records, _ = records_of(case["settings"], offsets, np.arange(len(ROWS)))
    merged = records.merged()
    if threshold < np.inf:
        assert merged.margins.tolist() == case["margins"]
    texts = np.where(merged.margins > threshold, "", merged.texts)
    assert texts.tolist() == answers

    logits = np.stack(LOGITS, axis=2)
    threshold = threshold if threshold < np.inf else None
    outputs = served(offsets, IS_CONTEXT, ROWS, contexts, logits, arguments, threshold)
    assert [text.decode() for text in outputs["answer"]] == answers
    for unit, texts in (("", contexts), ("_byte", [c.encode() for c in contexts])):
        places = zip(outputs[f"start{unit}"], outputs[f"end{unit}"], strict=True)
        for context, (start, end), answer in zip(texts, places, answers, strict=True):
            assert context[start:end] in (answer, answer.encode())
            assert answer or (start, end) == (0, 0)


def test_the_order_of_batches_changes_nothing():
    for case in GOLDEN_SQUAD["answers"]:
        records, expected = records_of(case["settings"], byte_offsets(), np.arange(len(ROWS)))
        order = np.random.default_rng(1).permutation(len(ROWS))
        permuted_records, actual = records_of(case["settings"], byte_offsets(), order)
        for field in dataclasses.fields(expected):
            np.testing.assert_array_equal(
                getattr(actual, field.name), getattr(expected, field.name), field.name
            )
        expected, actual = records.merged(), permuted_records.merged()
        assert actual.texts == expected.texts
        for name in ("margins", "confidence", "null_confidence"):
            np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name), name)


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


def test_the_smallest_null_score_of_a_row():
    zeros = np.zeros((3, 4), np.float32)
    start_logits, end_logits = zeros.copy(), zeros.copy()
    start_logits[:, 0] = [5.0, -2.0, 7.0]
    end_logits[:, 0] = [1.0, 3.0, 7.0]
    candidates = answer_spans.window_candidates(
        start_logits, end_logits, np.zeros((3, 4, 2), int), np.zeros((3, 4), bool)
    )
    assert candidates.null_logits.tolist() == [[5.0, 1.0], [-2.0, 3.0], [7.0, 7.0]]
    n_best = answer_spans.merge(candidates, [0, 0, 1], with_null=True)
    assert n_best.null_logits.tolist() == [[-2.0, 3.0], [7.0, 7.0]]
    assert n_best.counts.tolist() == [1, 1] and n_best.is_null[:, 0].all()
    assert n_best.margins().tolist() == [1.0, 14.0] and n_best.best().tolist() == [-1, -1]
    assert n_best.probabilities()[:, 0].tolist() == [1.0, 1.0]
    assert n_best.spans[:, 0].tolist() == [[0, 0], [0, 0]]
    without_null = answer_spans.merge(candidates, [0, 0, 1])
    assert without_null.counts.tolist() == [0, 0]
    assert not without_null.probabilities().any()
    assert answer_spans.texts(["a", "b"], without_null.spans[:, 0]) == ["", ""]


def test_rows_without_candidates_have_no_answer():
    arguments = np.zeros((3, 4, 2), int), np.zeros((3, 4), bool), [0, 0, 1], ["a", "b"]
    logits = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    for with_null in (False, True):
        records = AnswerRecords(Split(*arguments), 20, 30, with_null)
        records.put(np.arange(3), logits)
        merged = records.merged()
        assert merged.texts == ["", ""] and not merged.confidence.any()
        assert merged.null_confidence.tolist() == [with_null, with_null]
    for threshold in (None, -20.0, 0.0, 20.0):
        outputs = served(*arguments, logits, (20, 30, True), threshold)
        assert outputs["answer"].tolist() == [b"", b""]
        for name in ("start", "end", "start_byte", "end_byte"):
            assert not outputs[name].any()


def test_no_windows_and_wrong_shapes():
    arrays = [np.zeros((0, 6)), np.zeros((0, 6)), np.zeros((0, 6, 2), int), np.zeros((0, 6), bool)]
    n_best = answer_spans.merge(answer_spans.window_candidates(*arrays), [], with_null=True)
    assert len(n_best.counts) == 0 and n_best.probabilities().shape == (0, 21)
    assert n_best.best().shape == (0,) and n_best.spans.shape == (0, 21, 2)
    records = AnswerRecords(Split(*arrays[2:], rows=[], contexts=[]), 20, 30, True)
    assert records.merged().texts == []
    with pytest.raises(ValueError, match=r"each row needs a window\. Received: none of row 1"):
        candidates = answer_spans.window_candidates(*LOGITS, OFFSETS, IS_CONTEXT)
        answer_spans.merge(candidates, np.where(ROWS == 1, 0, ROWS))
    for wrong in (IS_CONTEXT[:, 1:], IS_CONTEXT[1:]):
        with pytest.raises(ValueError, match=r"must be \[W, T\].*Received: \[\[8, 20\]"):
            answer_spans.window_candidates(*LOGITS, OFFSETS, wrong)
