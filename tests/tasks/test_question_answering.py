"""Question answering: targets of windows, loss, metrics, answers."""

import json
import random
from collections import Counter

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfft import preprocess
from tfft.config import parse
from tfft.config.tasks import QuestionAnswering
from tfft.data import dataset_builder
from tfft.data.answer_targets import token_places
from tfft.evaluation import answers
from tfft.evaluation.answers import nearest_sentence, true_texts
from tfft.spec import StoredHead
from tfft.tasks import TASKS, passages, prepare_rows
from tfft.utils.errors import UserError

TASK = TASKS["question_answering"]
LABELS = ("start", "end")
WORDS = ["red", "blue", "grey", "sky", "is", "x", "y", "z", "caf\u00e9", "\u4eac", "b-a"]


def build(tiny, rows, folder, task=None, **data):
    """Return the training split of (question, context, answers), and its preprocessing."""
    path = folder / "rows.jsonl"
    keys = ("question", "context", "answers")
    path.write_text("".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows))
    config = parse(
        {
            "task": {"name": "question_answering", "max_question_length": 4, **(task or {})},
            "model": {"backbone": f"hf:{tiny}"},
            "data": {
                "train": str(path),
                "validation": None,
                "label": "answers",
                "max_length": 16,
                **data,
            },
        }
    )
    inputs = preprocess.load(config.model, config.data, config.task)
    settings = dataset_builder.DatasetSettings.of(config)
    return dataset_builder.build(config.data, inputs, settings).train, inputs


def random_rows(count, seed=0):
    """Return rows with contexts of many lengths, some without an answer."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        words = generator.choices(WORDS, k=generator.randint(3, 60))
        context, answer_words = " ".join(words), generator.randint(1, 3)
        first = generator.randrange(len(words) - answer_words + 1)
        start = len(" ".join([*words[:first], ""])) if first else 0
        text = " ".join(words[first : first + answer_words])
        answer = [{"text": text, "answer_start": start}] if generator.random() < 0.7 else []
        rows.append((" ".join(generator.choices(WORDS, k=3)), context, answer))
    return rows


@pytest.fixture(scope="module")
def split_and_inputs(tiny, tmp_path_factory):
    folder, task = tmp_path_factory.mktemp("rows"), {"doc_stride": 12}
    return build(tiny, random_rows(40), folder, task, max_length=32)


def test_answers_are_tokens_of_their_windows(split_and_inputs):
    split, _ = split_and_inputs
    targets = TASK.training_targets(QuestionAnswering(), split, {})
    assert len(targets) == len(split.examples) > len(split)
    for row in range(len(split)):
        texts = true_texts(split, row)
        windows = np.flatnonzero(split.example_rows == row)
        of_row = targets[windows]
        assert texts or not of_row.any()
        if not texts:
            continue
        assert of_row.any()  # the answers are shorter than the stride
        context = split.raw_row(row)[1].encode()
        for window, (first, last) in zip(windows, of_row, strict=True):
            if last:
                places, is_context = token_places(split, np.array([window]))
                assert is_context[0, first : last + 1].all()
                begin, end = places[0, first, 0], places[0, last, 1]
                assert context[begin:end].decode() == texts[0]


def test_loss_is_the_mean_of_both_cross_entropies():
    logits = np.random.default_rng(0).normal(size=(2, 5, 2)).astype(np.float32)
    loss = TASK.loss(QuestionAnswering()).call(np.array([[1, 3], [0, 0]]), logits)
    log_p = np.asarray(keras.ops.log_softmax(logits, axis=1))
    expected = [
        -(log_p[0, 1, 0] + log_p[0, 3, 1]) / 2,
        -(log_p[1, 0, 0] + log_p[1, 0, 1]) / 2,
    ]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("has_null", [False, True])
def test_evaluated_answers_are_those_that_are_served(has_null, split_and_inputs):
    split, inputs = split_and_inputs
    fitted = {"n_best": np.array([5.0]), "max_answer_length": np.array([6.0])}
    if has_null:
        fitted["null_threshold"] = np.zeros(1)
    columns = list(zip(*(split.raw_row(i) for i in range(len(split))), strict=True))
    batch, tokens = prepare_rows(TASK, inputs, columns)
    shape = batch["token_ids"].shape
    logits = np.random.default_rng(1).normal(size=(*shape, 2)).astype(np.float32)
    logits[batch["padding_mask"] == 0] = -1e9
    records = TASK.records(split, 2, fitted)
    for part in np.array_split(np.random.default_rng(2).permutation(len(logits)), 3):
        width = int(split.lengths[part].max())
        records.put(part, logits[part, :width])
    merged = records.merged()
    if has_null:
        fitted["null_threshold"] = np.array([np.median(merged.margins) + 1e-3])
    is_null = has_null & (merged.margins > np.median(merged.margins) + 1e-3)
    assert not has_null or 10 < is_null.sum() < 30
    served = TASK.locate(TASK.decode(tf.constant(logits), LABELS, fitted), tokens, LABELS, fitted)
    for row, (text, no) in enumerate(zip(merged.texts, is_null, strict=True)):
        outputs = {name: value[row].numpy() for name, value in served.items()}
        answer = TASK.answer(outputs, LABELS)
        assert answer["answer"] == ("" if no else text)
        context = columns[1][row]
        assert context[answer["start"] : answer["end"]] == answer["answer"]
        encoded = context.encode()[answer["start_byte"] : answer["end_byte"]]
        assert encoded.decode() == answer["answer"]
        confidence = (merged.null_confidence if no else merged.confidence)[row]
        assert answer["score"] == pytest.approx(confidence, rel=1e-5)


def test_a_small_change_of_the_logits_changes_no_answer(split_and_inputs):
    split, inputs = split_and_inputs
    fitted = {"n_best": np.array([5.0]), "max_answer_length": np.array([6.0])}
    fitted["null_threshold"] = np.zeros(1)
    columns = list(zip(*(split.raw_row(i) for i in range(len(split))), strict=True))
    batch, tokens = prepare_rows(TASK, inputs, columns)
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(*batch["token_ids"].shape, 2)).astype(np.float32)
    margins = TASK.margin({"logits": logits}, fitted, tokens) * TASK.unit(logits, fitted)
    assert margins.shape == (len(split),) and (margins >= 0).all()
    change = 0.01
    noise = generator.uniform(-change, change, logits.shape).astype(np.float32)
    before, after = (
        TASK.locate({"logits": tf.constant(values)}, tokens, LABELS, fitted)
        for values in (logits, logits + noise)
    )
    is_decided = margins > change
    assert 5 < is_decided.sum() < len(split)
    for name in ("answer", "start", "end"):
        np.testing.assert_array_equal(before[name][is_decided], after[name][is_decided])


def test_metrics_of_questions_with_and_without_an_answer(split_and_inputs):
    split, _ = split_and_inputs
    fitted = TASK.fit_targets(QuestionAnswering(), split.targets)
    assert fitted["null_threshold"] == 0 and TASK.is_fitted(fitted)
    compared = TASK.baselines(split, split, 2)
    assert set(compared) == {"no_answer", "sentence"}
    without = float((split.targets.lengths == 0).mean())
    none = TASK.metrics(compared["no_answer"], split.targets, {})
    assert none["f1"] == none["exact_match"] == pytest.approx(without)
    assert none["HasAns_f1"] == 0 and none["NoAns_f1"] == 1 and next(iter(none)) == "f1"
    # A threshold below all margins answers nothing; the fitted one is at least as good.
    records = TASK.records(split, 2, fitted)
    for start in range(0, len(split.examples), 8):
        part = np.arange(start, min(start + 8, len(split.examples)))
        shape = (len(part), int(split.lengths[part].max()), 2)
        records.put(part, np.random.default_rng(start).normal(size=shape).astype(np.float32))
    merged = records.merged()
    tuned = TASK.fit(merged, split.targets, fitted)
    best = TASK.metrics(merged, split.targets, tuned)["f1"]
    assert best >= without
    draws = TASK.bootstrap(merged, split.targets, 50, 0, tuned)["f1"]
    assert draws.min() <= best <= draws.max()
    details = TASK.details(merged, split, LABELS, tuned)
    assert len(details.losses) == len(split) and details.sections[0].rows
    assert set(details.describe(0)) == {"text", "label", "predicted", "confidence"}


class OneQuestion:
    """A split of a question about a context of 900 characters."""

    context = "é" * 440 + "answer" + "x" * 454

    def __init__(self, *spans):
        self.targets = [np.array(spans, np.int32).reshape(-1, 2)]

    def raw_row(self, position):
        return "where?", self.context


def test_the_report_shows_the_passage_around_the_answer():
    first = len(("é" * 440).encode())
    shown = answers.passage(OneQuestion((first, first + 6)), 0)
    assert shown == f"where? | … {'é' * 100}answer{'x' * 194} …"
    assert answers.passage(OneQuestion(), 0) == f"where? | {'é' * 300} …"
    at_the_end = answers.passage(OneQuestion((first + 450, first + 460)), 0)
    assert at_the_end == f"where? | … {'x' * 300}"
    assert answers.passage(OneQuestion((0, 2)), 0, 900) == f"where? | {OneQuestion.context}"


def test_without_questions_that_have_no_answer_there_is_no_threshold(tiny, tmp_path):
    rows = [row for row in random_rows(30) if row[2]]
    split, _ = build(tiny, rows, tmp_path)
    fitted = TASK.fit_targets(QuestionAnswering(), split.targets)
    assert "null_threshold" not in fitted and not TASK.is_fitted(fitted)
    assert set(TASK.baselines(split, split, 2)) == {"sentence"}
    assert set(TASK.metrics(TASK.baselines(split, split, 2)["sentence"], split.targets, {})) == {
        "f1",
        "exact_match",
    }


def test_padding_is_no_answer():
    features = {"sequence": keras.Input((None, 8))}
    mask = keras.Input((None,), dtype="int32")
    logits = TASK.head(None, QuestionAnswering(dropout=0.0), LABELS)(features, mask)
    model = keras.Model([features["sequence"], mask], logits)
    x = np.random.default_rng(0).normal(size=(1, 5, 8))
    values = model.predict_on_batch([x, np.array([[1, 1, 1, 0, 0]])])
    assert (values[0, 3:] == -1e9).all() and (np.abs(values[0, :3]) < 100).all()
    assert TASK.unit(values, {}) == max(1.0, np.abs(values[0, :3]).max())


def test_a_row_without_candidates_has_no_answer():
    tokens = {
        "own": tf.zeros([1, 3], tf.bool),
        "starts": tf.zeros([1, 3], tf.int32),
        "ends": tf.zeros([1, 3], tf.int32),
        "row": tf.constant([0]),
        "text": tf.constant(["abc"]),
    }
    for threshold, score in ((None, 0.0), (0.0, 1.0)):
        outputs = passages.decode(tf.zeros([1, 3, 2]), tokens, 20, 30, threshold)
        assert {n: v.dtype.name for n, v in outputs.items()} == TASK.section.outputs
        assert outputs["answer"].numpy() == [b""] and outputs["score"].numpy() == [score]
        assert outputs["start"].numpy() == outputs["end_byte"].numpy() == [0]


def test_heads_of_another_kind_are_refused():
    with pytest.raises(UserError, match="the checkpoint's head is for tags; task is question_"):
        TASK.stored_head(StoredHead(("a", "b"), {}, "tags"))
    assert TASK.stored_head(StoredHead(("LABEL_0", "LABEL_1"), {}, "answers")).labels == LABELS


def test_the_nearest_sentence_has_most_words_of_the_question():
    context = "Rome is old. The sky over Paris is red! Who knows?"
    assert nearest_sentence("What is the sky over Paris?", context) == "The sky over Paris is red!"
    assert nearest_sentence("x", "") == ""


def test_lost_answers_are_counted(tiny, tmp_path, capfd):
    context = "the sky is red x " + "x y z " * 20 + "blue"
    far = [{"text": "blue", "answer_start": context.index("blue")}]
    rows = [("the sky", context, far), ("the sky", "is red", [])]
    split, _ = build(tiny, rows, tmp_path, task={"max_windows": 2})
    log = capfd.readouterr().err
    assert "in train, 1 answers lie in no window" in log
    assert "1 of 2 rows (50.0%) are cut at max_windows or max_question_length" in log
    assert len(split.examples) == 3


def test_white_space_of_answers_is_left_out(tiny, tmp_path):
    rows = [("q", "the sky is red x", answer(text, 11 - shift)) for text, shift in SPACED.items()]
    split, _ = build(tiny, rows, tmp_path)
    assert [true_texts(split, row) for row in range(3)] == [["red"]] * 3


def test_questions_of_a_context_are_held_out_together(tiny, tmp_path, capfd):
    contexts = [f"the sky {word} is red" for word in WORDS[:5]]
    rows = [("q", context, answer("red", context.index("red"))) for context in contexts * 4]
    train, _ = build(tiny, rows, tmp_path, validation={"fraction": 0.2})
    assert sorted(Counter(train.raw_row(i)[1] for i in range(len(train))).values()) == [4] * 4
    build(tiny, rows[:1] * 3, tmp_path, validation={"fraction": 0.2})
    assert (
        "data.validation: there is one context, so none can be held out" in capfd.readouterr().err
    )


def test_a_cut_question_is_counted(tiny, tmp_path, capfd):
    build(tiny, [("red blue sky the x", "is red", []), ("q", "is red", [])], tmp_path)
    assert "1 of 2 rows (50.0%) are cut at" in capfd.readouterr().err


def test_short_windows_are_verified_too():
    """Where a window has fewer tokens than the n best, all of them are considered."""
    logits = np.full((1, 8, 2), -1e9, np.float32)
    logits[0, :3] = [[0, 0], [5, 1], [1, 6]]
    tokens = {
        "own": np.array([[False, True, True, *[False] * 5]]),
        "starts": np.arange(8)[None],
        "ends": np.arange(1, 9)[None],
        "row": np.zeros(1, int),
    }
    fitted = {"n_best": np.array([5.0]), "max_answer_length": np.array([6.0])}
    margin = TASK.margin({"logits": logits}, fitted, tokens)
    # 5 + 6 against 1 + 6, in the unit 6.
    assert margin == pytest.approx([4 / 4 / 6])


SPACED = {"red": 0, " red": 1, "red ": 0}


def answer(text, start):
    return [{"text": text, "answer_start": start}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("q", "a red sky", answer("red", 3)), "answer 1: 'red' is not at 3 of the context, where"),
        (("q", "a red sky", answer("blue", 2)), "the context does not hold it"),
        (("q", "a red sky", answer("red", 99)), "'answer_start' must be in the context, 0 to 8"),
        (("q", "a red sky", answer("red", -1)), "'answer_start' must be in the context"),
        (("q", "a red sky", answer("", 2)), "answer 1: 'text' is empty"),
        (("q", "a red sky", [{"text": "red"}]), "answer 1: no key 'answer_start'"),
        (("q", "a red sky", [{"answer_start": 2}]), "answer 1: no key 'text'"),
        (("q", "a red sky", answer("red", "2")), "'answer_start' must be a whole number"),
        (("q", "a red sky", answer(5, 2)), "'text' must be text"),
        (("q", "a red sky", "red"), "'answers' must be a list of answers; csv cannot hold them"),
        (("q", "a red sky", ["red"]), "must be an object"),
        (("q", "a red sky", {"text": ["red"], "answer_start": [2, 3]}), "1 texts and 2 starts"),
        (("q", "a red sky", {"text": ["red"]}), "no key 'answer_start'"),
        (("q", "a red sky", None), "'answers' is null"),
        (("", "a red sky", []), "'question' is empty"),
        (("q", " ", []), "column 'context' is empty"),
        (("q", ["a"], []), "column 'context' must be a text. Received: list"),
        (({"a": 1}, "a", []), "column 'question' must be a text. Received: dict"),
        (("q", "a \ud800 b", []), "column 'context' holds a lone surrogate"),
        (("q", float("nan"), []), "'context' is nan"),
    ],
)
def test_bad_rows_are_one_line(row, message, tiny, tmp_path):
    with pytest.raises(UserError, match=r"rows\.jsonl:1: ") as error:
        build(tiny, [row], tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [
        ({"doc_stride": 13}, {}, "task.doc_stride: must be below the 9 tokens"),
        ({"max_question_length": 12}, {}, "task.max_question_length: must leave room"),
        ({"max_answer_length": 0}, {}, "task.max_answer_length"),
        ({"n_best": 0}, {}, "task.n_best"),
        ({"max_windows": 0}, {}, "task.max_windows"),
        ({"doc_stride": "some"}, {}, "task.doc_stride"),
        ({"pooling": "first"}, {}, "task.pooling: unknown key"),
        ({}, {"context": "question"}, "question, context and label must be different"),
        ({}, {"label": ["a", "b"]}, "data.label: must be one column"),
        ({}, {"labels": ["a", "b"]}, "data.labels: is for "),
        ({}, {"context": "text"}, "no key 'text'"),
    ],
)
def test_bad_configs_are_one_line(task, data, message, tiny, tmp_path):
    with pytest.raises(UserError) as error:
        build(tiny, [("q", "a red sky", answer("red", 2))], tmp_path, task, **data)
    assert message in str(error.value) and "\n" not in str(error.value)
