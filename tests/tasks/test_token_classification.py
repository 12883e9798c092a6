"""Classification of words: targets of tokens, loss, metrics, answers."""

import random
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.preprocess.test_parity import trained
from tfft.config.tasks import TokenClassification
from tfft.data import batches, tags
from tfft.data.tag_targets import TAGS, word_places
from tfft.evaluation.records import bridge_entities, word_logits
from tfft.preprocess import TextInputs, words
from tfft.preprocess.windows import WindowSettings
from tfft.tasks import TASKS, token_classification
from tfft.utils.ragged import Ragged

TASK = TASKS["token_classification"]
LABELS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def ragged(*rows, dtype=np.int32):
    return Ragged.from_rows([np.array(row, dtype) for row in rows], dtype)


# An entity of two words in three tokens; and a row that is cut before its third word.
SPLIT = SimpleNamespace(
    targets=ragged([1, 2, 0], [3, 0, 1]),
    example_rows=np.arange(2),
    of_tokens={"token_words": ragged([-1, 0, 1, 1, 2, -1], [-1, 0, 0, 1, -1])}.get,
)


def test_first_tokens_of_words_have_targets():
    targets = TASK.training_targets(TokenClassification(), SPLIT, {})
    assert targets[0].tolist() == [-1, 1, 2, -1, 0, -1]
    assert targets[1].tolist() == [-1, 3, -1, 0, -1]


def test_all_tokens_of_words_have_targets():
    targets = TASK.training_targets(TokenClassification(label="all"), SPLIT, {})
    assert targets[0].tolist() == [-1, 1, 2, 2, 0, -1]
    assert targets[1].tolist() == [-1, 3, 4, 0, -1]  # a further token continues the entity


def test_loss_is_the_mean_over_tokens_with_a_target():
    targets = TASK.training_targets(TokenClassification(), SPLIT, {})
    batch = batches.Batch(np.array([1, 0]), 8)
    y, weight = batches.targets_of(targets).arrays(batch)
    assert y.shape == weight.shape == (2, 8) and weight.sum() == 5
    logits = np.random.default_rng(0).normal(size=(2, 8, 5)).astype(np.float32)
    loss = TASK.loss(TokenClassification())(y, logits, sample_weight=weight)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    places = [(0, 1, 3), (0, 3, 0), (1, 1, 1), (1, 2, 2), (1, 4, 0)]  # row, token, tag
    assert float(loss) == pytest.approx(-np.mean([np.log(p[place]) for place in places]), rel=1e-5)


def test_answers_are_as_many_as_the_data_need():
    targets = ragged([1, 2, 0], [1] * 20)
    assert TASK.fit_targets(TokenClassification(), targets)["max_entities"].tolist() == [40]
    assert TASK.fit_targets(TokenClassification(), ragged([0]))["max_entities"].tolist() == [16]
    config = TokenClassification(max_entities=3)
    assert TASK.fit_targets(config, targets)["max_entities"].tolist() == [3]


def logits_of(targets, lead=4.0):
    return targets.with_values(lead * np.eye(5, dtype=np.float32)[targets.values])


def test_metrics_of_right_and_wrong_tags():
    gold = ragged([1, 2, 0], [3, 0, 1])
    right = TASK.metrics(logits_of(gold), gold, {})
    assert set(right) == set(TASK.section.metrics) and set(right.values()) == {1.0}
    # One boundary and one type are wrong.
    predicted = ragged([1, 0, 0], [1, 0, 1])
    values = TASK.metrics(logits_of(predicted), gold, {})
    assert values["f1"] == pytest.approx(1 / 3) and values["token_accuracy"] == pytest.approx(4 / 6)
    samples = TASK.bootstrap(logits_of(predicted), gold, 50, 0, {})
    assert set(samples) == set(values) and all(len(draws) == 50 for draws in samples.values())


def test_details_name_the_entities():
    gold, predicted = ragged([1, 2, 0], [3, 0, 1]), ragged([1, 0, 0], [3, 0, 1])
    words = [["New", "York", "!"], ["Ann", "in", "Rome"]]
    split = SimpleNamespace(targets=gold, text_of=lambda row, a, b: " ".join(words[row][a:b]))
    details = TASK.details(logits_of(predicted), split, LABELS, {})
    assert details.wrong.tolist() == [True, False]
    assert details.describe(0) == {"label": "New York (LOC)", "predicted": "New (LOC)"}
    titles = [section.title for section in details.sections]
    assert titles[:2] == ["By type", "Errors"] and len(titles) == 3
    assert details.sections[1].rows[0] == ["LOC", 1, 0, 1, 0, 0]
    assert (details.losses > 0).all() and len(details.losses) == 2


def test_dictionary_baseline_knows_the_words_of_the_training():
    words = Ragged.from_rows([np.array(["Rome", "is", "Rome"], object)], object)
    new_words = Ragged.from_rows([np.array(["is", "Rome"]), np.array(["Oslo"])], object)
    logits = TASK.linear_logits(words, ragged([1, 0, 1]), new_words, 5)
    assert [row.argmax(axis=1).tolist() for row in logits] == [[0, 1], [0]]


def test_margin_looks_at_first_tokens():
    p = np.array([[[0.5, 0.5, 0, 0, 0], [0.1, 0.8, 0.1, 0, 0]]])
    tokens = {"first": np.array([[False, True]]), "row": np.zeros(1, int), "text": ["a"]}
    assert TASK.margin({"probabilities": p}, {}, tokens) == pytest.approx([0.35])
    assert TASK.margin({"probabilities": p}, {}) == pytest.approx([0.0])


def test_answer_lists_entities_up_to_the_largest_number():
    text = "Ann in New York"
    logits = 9 * np.eye(5, dtype=np.float32)[[[0, 3, 0, 1, 2, 0]]]
    tokens = {
        "starts": tf.constant([[0, 0, 4, 7, 11, 0]]),
        "ends": tf.constant([[0, 3, 6, 10, 15, 0]]),
        "first": tf.constant([[False, True, True, True, True, False]]),
        "own": tf.constant([[False, True, True, True, True, False]]),
        "row": tf.constant([0]),
        "text": tf.constant([text]),
    }
    for size, expected in ((4, ["Ann", "New York"]), (1, ["Ann"])):
        fitted = {"max_entities": np.array([float(size)])}
        outputs = TASK.locate(TASK.decode(tf.constant(logits), LABELS, {}), tokens, LABELS, fitted)
        assert outputs["entity"].shape == (1, size) and outputs["count"].numpy() == [2]
        answer = TASK.answer({name: value.numpy()[0] for name, value in outputs.items()}, LABELS)
        assert [entity["text"] for entity in answer["entities"]] == expected
    assert answer["count"] == 2  # more than the answer may have
    assert answer["entities"][0] == {
        "text": "Ann",
        "type": "PER",
        "start": 0,
        "end": 3,
        "start_byte": 0,
        "end_byte": 3,
        "score": pytest.approx(float(keras.ops.softmax(logits)[0, 1, 3])),
    }


def test_probabilities_are_over_the_tags():
    logits = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    expected = TASK.decode(tf.constant(logits), LABELS, {})["probabilities"]
    np.testing.assert_allclose(TASK.activate(logits, {}), expected, atol=1e-6)
    np.testing.assert_allclose(TASK.activation({})(logits), expected, atol=1e-6)


def test_entities_go_on_behind_words_without_a_token():
    tag_ids, no = np.array([1, 0, 0, 2, 0, 0, 3, 0, 2, 1, 0]), [1, 2, 4, 5, 7, 10]
    logits = np.eye(5)[tag_ids]
    rows = np.array([0] * 7 + [0, 0] + [1, 1])
    logits.setflags(write=False)  # as the logits that several workers sum
    logits = bridge_entities(logits, np.isin(np.arange(11), no), rows)
    assert logits.argmax(axis=1).tolist() == [1, 2, 2, 2, 0, 0, 3, 0, 2, 1, 0]
    logits = bridge_entities(logits, np.ones(11, bool), rows)  # nothing is known: nothing changes
    assert logits.argmax(axis=1).tolist() == [1, 2, 2, 2, 0, 0, 3, 0, 2, 1, 0]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe_prefix", "unigram"])
def test_evaluated_entities_are_those_that_are_served(kind):
    """Also where a token reaches over several words, or a word over two windows."""
    inputs = TextInputs(trained(kind), 24, windows=WindowSettings(3, 6))
    generator = random.Random(0)
    texts = ["".join(generator.choices("ab e\u00e9xR5.,'-(\u4eac ", k=30)) for _ in range(40)]
    texts += ["3.5 (AAPL). a, b;c d...e ...", "", "x" * 60, "a b x " * 60]
    batch, tokens = inputs.located_batch(texts)
    logits = np.random.default_rng(0).normal(size=(*batch["token_ids"].shape, 5)).astype(np.float32)
    fitted = {"max_entities": np.array([512.0])}
    served = TASK.locate(TASK.decode(tf.constant(logits), LABELS, {}), tokens, LABELS, fitted)
    first_window = 0
    for row, (text, windows) in enumerate(zip(texts, inputs.windows_of(texts), strict=True)):
        starts = words.word_starts(text)
        _, word_tokens, counts = word_places(windows, starts)
        assert counts.sum() == len(starts)
        indices = first_window + np.repeat(np.arange(len(windows)), counts)
        first_window += len(windows)
        of_words = word_logits(logits, indices, word_tokens)
        of_words = bridge_entities(of_words, word_tokens == -1, np.zeros(len(starts)))
        names = [LABELS[i] for i in of_words.argmax(axis=-1)]
        expected = [(span.type, starts[span.start]) for span in tags.spans(names)]
        count = int(served["count"][row])
        actual = [
            (served["type"][row, i].numpy().decode(), int(served["start_byte"][row, i]))
            for i in range(count)
        ]
        assert actual == expected
    assert first_window == len(logits) > len(texts)


def test_outputs_are_those_of_the_section():
    tokens = {
        "starts": tf.zeros([1, 2], tf.int32),
        "ends": tf.ones([1, 2], tf.int32),
        "first": tf.constant([[True, False]]),
        "own": tf.constant([[True, True]]),
        "row": tf.constant([0]),
        "text": tf.constant(["a"]),
    }
    outputs = TASK.decode(tf.zeros([1, 2, 5]), LABELS, {})
    outputs = TASK.locate(outputs, tokens, LABELS, {"max_entities": np.array([2.0])})
    assert {n: v.dtype.name for n, v in outputs.items()} == TASK.section.outputs
    assert token_classification.types_of(LABELS) == ("LOC", "PER")
    assert TAGS.of_windows
