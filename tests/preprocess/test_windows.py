"""Windows over long texts: those of the tokenizers library, equal on the host and in the graph."""

import json
from itertools import pairwise

import numpy as np
import pytest
import tensorflow as tf
from tokenizers import Tokenizer

from tests.preprocess.test_parity import KINDS, random_texts, trained
from tfft.config.tasks import QuestionAnswering, TextClassification, TokenClassification
from tfft.preprocess import TextInputs
from tfft.preprocess.windows import Windows, WindowSettings, own_tokens
from tfft.utils.errors import UserError

LONG = "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 3
TEXTS = ["the red sky x blue", "", "  ", LONG, "x" * 90, *random_texts(40, 3)]
LENGTH, STRIDE, MOST, FIRST = 24, 5, 4, 8
COLUMNS = {False: (TEXTS,), True: (TEXTS[::-1], TEXTS)}


@pytest.mark.parametrize("length", [0, 1, 9, 10, 11, 14, 15, 30, 31, 100])
def test_windows_cover_the_text_and_share_their_stride(length):
    windows = Windows(10, 4, 1000)
    bounds = windows.bounds(length)
    assert bounds[0][0] == 0 and bounds[-1][1] == length
    for (first, end), (next_first, next_end) in pairwise(bounds):
        assert end - next_first == 4 and end - first == 10 and next_end > end
    own = own_tokens(bounds, is_pair=False)
    assert [token for part in own for token in range(*part)] == list(range(length))
    # In the middle of the text each token has at least half of the stride on both sides.
    for (first, end), (own_first, own_end) in zip(bounds, own, strict=True):
        assert own_first == 0 or own_first - first >= 2
        assert own_end == length or end - own_end >= 2
    assert own_tokens(bounds, is_pair=True) == bounds


def test_what_follows_the_most_windows_is_cut():
    assert Windows(10, 4, 2).bounds(100) == [(0, 10), (6, 16)]
    assert Windows(10, 2, 3, first=4).bounds(100, first_length=4) == [(0, 6), (4, 10), (8, 14)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (WindowSettings(20, 4), "task.doc_stride: must be below the 20 tokens"),
        (WindowSettings(12, 4, 8), r"below the 12 tokens .*without special tokens and question"),
        (WindowSettings(None, 4, 19), "task.max_question_length: must leave room"),
    ],
)
def test_windows_without_room_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Windows.create(20, settings)


def test_settings_are_those_of_the_task():
    assert WindowSettings.of(TextClassification()) is None
    assert WindowSettings.of(TokenClassification(max_windows=7)) == (None, 7, 0, 1)
    assert WindowSettings.of(QuestionAnswering(doc_stride=9)) == (9, 32, 64, 30)
    assert Windows.create(380, WindowSettings(None, 32, 64, 30)).stride == 79
    assert Windows.create(4000, WindowSettings()).stride == 128
    # Room for the longest answer, but not more than half of a window.
    assert Windows.create(125, WindowSettings(None, 32, 64, 30)).stride == 30
    assert Windows.create(64 + 20, WindowSettings(None, 32, 64, 30)).stride == 10


def inputs_of(spec, is_pair, stride=STRIDE):
    settings = WindowSettings(3 if is_pair else stride, MOST, FIRST if is_pair else 0)
    columns = ("question", "context") if is_pair else None
    return TextInputs(spec, LENGTH, is_pair, windows=settings, columns=columns)


def library_windows(spec, is_pair, row):
    """Return the ids and segments of a row's windows by the tokenizers library."""
    tokenizer = Tokenizer.from_str(spec)
    strategy = {"strategy": "only_second"} if is_pair else {}
    tokenizer.enable_truncation(LENGTH, stride=3 if is_pair else STRIDE, **strategy)
    encoding = tokenizer.encode(*row)
    windows = [encoding, *encoding.overflowing][:MOST]
    return [(window.ids, window.type_ids) for window in windows]


@pytest.mark.parametrize("is_pair", [False, True])
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow if k != "wordpiece" else ()) for k in KINDS]
)
def test_windows_are_those_of_the_library_and_of_the_graph(kind, is_pair):
    spec = trained(kind)
    inputs, columns = inputs_of(spec, is_pair), COLUMNS[is_pair]
    untruncated = Tokenizer.from_str(spec)
    untruncated.no_truncation()
    rows = inputs.windows_of(*columns)
    compared = 0
    for row, windows in zip(zip(*columns, strict=True), rows, strict=True):
        # The library has no limit for the first text alone.
        question = untruncated.encode(row[0], add_special_tokens=False)
        if not is_pair or len(question.ids) <= FIRST:
            expected = library_windows(spec, is_pair, row)
            assert [(window.ids, window.segments) for window in windows] == expected
            compared += 1
    assert compared > 8 and max(map(len, rows)) == MOST
    assert any(windows[-1].truncated for windows in rows)

    host, tokens = inputs.located_batch(*columns)
    signature = [tf.TensorSpec([None], tf.string)] * len(columns)
    run = tf.function(inputs.graph().located, signature, autograph=False)
    graph = {k: v.numpy() for k, v in run(*map(tf.constant, columns)).items()}
    assert all(t.startswith(g) for t, g in zip(tokens.pop("text"), graph.pop("text"), strict=True))
    assert {**host, **tokens}.keys() == graph.keys()
    for name, values in {**host, **tokens}.items():
        np.testing.assert_array_equal(values, graph[name], name)


def test_each_token_of_a_text_belongs_to_one_window():
    inputs = inputs_of(trained("wordpiece"), False)
    _, tokens = inputs.located_batch([LONG])
    starts = tokens["starts"][tokens["own"]]
    assert (np.diff(starts) > 0).all()  # in order, none twice
    assert tokens["first"].sum() == len(starts)  # each letter is a word
    assert len(tokens["row"]) == MOST


def test_questions_are_cut_and_windows_read_back(tmp_path):
    inputs = inputs_of(trained("wordpiece"), True)
    (windows,) = inputs.windows_of(["a b c d e f g h i j k l"], [LONG])
    for window in windows:
        assert window.is_own.index(True) == 1 + FIRST + 1  # after [CLS], the question and [SEP]
    inputs.save(tmp_path)
    settings = json.loads((tmp_path / "inputs.json").read_text())
    assert settings["columns"] == ["question", "context"]
    restored = TextInputs.restore(tmp_path)
    assert restored.windows == inputs.windows and restored.columns == inputs.columns
    assert restored.fingerprint == inputs.fingerprint
    assert restored.fingerprint != TextInputs(inputs.spec, LENGTH, True).fingerprint
