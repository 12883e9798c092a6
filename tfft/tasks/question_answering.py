"""Extractive question answering: the passage of a context that answers a question.

The network computes two logits for each token of a window: how likely an answer starts and ends
there (Devlin et al. 2019, "BERT", sections 4.2 and 4.3). The first token of a window stands for no
answer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfft.config import tasks as task_sections
from tfft.data import Dataset
from tfft.data.answer_targets import NAMES, token_targets
from tfft.evaluation import answers as answer_records
from tfft.evaluation import squad_metrics
from tfft.evaluation.answers import AnswerRecords, Answers
from tfft.spec import Backbone, Details, Fitted, StoredHead, Table, Task
from tfft.tasks import passages
from tfft.tasks.heads import token_head
from tfft.utils.ragged import Ragged

PADDING_LOGIT = -1e9  # of padding: no probability. Finite, as heads compute in float32


class SpanCrossEntropy(keras.losses.Loss):
    """Mean cross-entropy of the first and the last token of an answer; one value per window."""

    def __init__(self, name: str = "loss"):
        super().__init__(name=name, reduction="sum_over_batch_size", dtype="float32")

    @staticmethod
    def target_width(outputs: int) -> int:
        """Return the number of values in a window's target: a token for each output."""
        return outputs

    def call(self, y_true, y_pred):
        """Compute the loss [B] of token positions [B, 2] and logits [B, T, 2]."""
        log_p = ops.log_softmax(ops.cast(y_pred, "float32"), axis=1)
        target = ops.one_hot(ops.cast(y_true, "int32"), ops.shape(y_pred)[1], axis=1)  # [B, T, 2]
        return -0.5 * ops.sum(log_p * target, axis=(1, 2))


class QuestionAnswering(Task):
    """Each row is a question and a context; targets are the bytes of its answers, `Ragged`."""

    section = task_sections.QuestionAnswering
    summary = "the answer: its text, its place in characters and bytes, and its score"
    output = "logits"
    unfitted = "task: no validation rows; the threshold of no answer stays 0"
    pipeline = "question-answering"
    answers_with = "a passage of the context, from {count} logits of each token"
    limits = (
        "An answer is a passage of the context, in its words.",
        "It reads the context up to its largest number of windows; later answers are not found.",
    )
    head_kind = "answers"
    of_tokens = True

    def head(
        self, backbone: Backbone, config: Any, labels: Sequence[str]
    ) -> Callable[[Mapping[str, keras.KerasTensor], keras.KerasTensor | None], keras.KerasTensor]:
        """Return a function: features by name and padding mask (or None) -> logits [B, T, 2]."""
        head = token_head(config.dropout, len(labels))

        def logits(
            features: Mapping[str, keras.KerasTensor], mask: keras.KerasTensor | None
        ) -> keras.KerasTensor:
            values = head(features, mask)
            if mask is None:
                return values
            # An answer is one of the tokens of a window, however many are padding.
            is_token = ops.expand_dims(ops.cast(mask, "bool"), -1)
            return ops.where(is_token, values, PADDING_LOGIT)

        return logits

    def stored_head(self, head: StoredHead) -> StoredHead:
        """Return the head with the names of its outputs.

        Raises:
            UserError: the head is for another task.
        """
        return replace(super().stored_head(head), labels=NAMES)

    def loss(self, config: Any) -> keras.losses.Loss:
        """Build the loss; it returns one value per window."""
        return SpanCrossEntropy()

    def fit_targets(self, config: Any, targets: Ragged, has_new_head: bool = True) -> Fitted:
        """Return the limits of answers and, if a row has no answer, `null_threshold` [1]."""
        fitted = {
            "n_best": np.array([float(config.n_best)]),
            "max_answer_length": np.array([float(config.max_answer_length)]),
        }
        if (targets.lengths == 0).any():
            fitted["null_threshold"] = np.zeros(1)
        return fitted

    def training_targets(self, config: Any, split: Dataset, fitted: Fitted) -> np.ndarray:
        """Return the first and the last token of the answer in each window, int32 [E, 2]."""
        return token_targets(split)

    def records(self, split: Dataset, outputs: int, fitted: Fitted) -> AnswerRecords:
        """Return what collects the best answers of each window."""
        n_best, length = int(fitted["n_best"][0]), int(fitted["max_answer_length"][0])
        return AnswerRecords(split, n_best, length, "null_threshold" in fitted)

    def baselines(self, train: Dataset, split: Dataset, outputs: int) -> dict[str, Answers]:
        """Return no answer to any question, where the training rows have it, and sentences.

        `sentence` answers with the sentence of the context that has most words of the question.
        """
        result = {}
        if (train.targets.lengths == 0).any():
            result["no_answer"] = Answers.of_texts(split, [""] * len(split))
        sentences = [answer_records.nearest_sentence(*split.raw_row(i)) for i in range(len(split))]
        return {**result, "sentence": Answers.of_texts(split, sentences)}

    def is_fitted(self, fitted: Fitted) -> bool:
        """Return whether there is a threshold of no answer."""
        return "null_threshold" in fitted

    def fit(self, records: Answers, targets: Ragged, fitted: Fitted) -> Fitted:
        """Return `fitted` with the threshold of no answer that has the best F1."""
        if "null_threshold" not in fitted:
            return fitted
        threshold = squad_metrics.fit_threshold(records.scores.f1, records.margins, records.scores)
        return {**fitted, "null_threshold": np.array([threshold])}

    def metrics(self, records: Answers, targets: Ragged, fitted: Fitted) -> dict[str, float]:
        """Compute exact match and F1, also of the rows with and without an answer if both occur."""
        scores = _final_scores(records, fitted)
        return _ordered(squad_metrics.headline(scores, _has_null(targets)))

    def bootstrap(
        self, records: Answers, targets: Ragged, draws: int, seed: int, fitted: Fitted
    ) -> dict[str, np.ndarray]:
        """Compute the headline metrics of bootstrap resamples of the rows, each [draws]."""
        scores = _final_scores(records, fitted)
        return _ordered(squad_metrics.bootstrap(scores, draws, seed, _has_null(targets)))

    def details(
        self, records: Answers, split: Dataset, labels: Sequence[str], fitted: Fitted
    ) -> Details:
        """Compute metrics by the first word of the question, and losses by row.

        The loss is 1 - F1, times the confidence: confident wrong answers come first.
        """
        scores = _final_scores(records, fitted)
        is_null = _is_null(records, fitted)
        confidence = np.where(is_null, records.null_confidence, records.confidence)

        def describe(position: int) -> dict[str, Any]:
            texts = dict.fromkeys(answer_records.true_texts(split, position))
            return {
                "text": answer_records.passage(split, position),
                "label": " | ".join(texts) or "no answer",
                "predicted": (not is_null[position] and records.texts[position]) or "no answer",
                "confidence": float(confidence[position]),
            }

        words = [split.raw_row(i)[0].split()[0].lower() for i in range(len(split))]
        return Details(
            sections=(_word_table(words, scores),),
            losses=(1 - scores.f1) * confidence,
            wrong=scores.exact < 1,
            describe=describe,
        )

    def activate(self, logits: np.ndarray, fitted: Fitted) -> np.ndarray:
        """Return the logits: answers of different windows compete by them."""
        return np.asarray(logits)

    def activation(self, fitted: Fitted, **arguments: Any) -> keras.layers.Layer:
        """Return a layer that passes the logits through."""
        return keras.layers.Activation("linear", **arguments)

    def decode(
        self, logits: tf.Tensor, labels: Sequence[str], fitted: Fitted
    ) -> dict[str, tf.Tensor]:
        """Return `logits` of starts and ends, float32 [E, T, 2]."""
        return {"logits": tf.cast(logits, tf.float32)}

    def locate(
        self,
        outputs: Mapping[str, tf.Tensor],
        tokens: Mapping[str, tf.Tensor],
        labels: Sequence[str],
        fitted: Fitted,
    ) -> dict[str, tf.Tensor]:
        """Return the answers to raw rows; see `passages.decode`."""
        return passages.decode(
            outputs["logits"],
            tokens,
            int(fitted["n_best"][0]),
            int(fitted["max_answer_length"][0]),
            _threshold(fitted),
        )

    def answer(self, outputs: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
        """Return `{"answer", "start", "end", "start_byte", "end_byte", "score"}` of a row.

        `start` and `end` count characters, `start_byte` and `end_byte` bytes of UTF-8. No answer is
        an empty text at 0.
        """
        places = {name: int(outputs[name]) for name in ("start", "end", "start_byte", "end_byte")}
        text = outputs["answer"].decode("utf-8", "replace")
        return {"answer": text, **places, "score": float(outputs["score"])}

    def unit(self, output: np.ndarray, fitted: Fitted) -> float:
        """Return the largest logit, at least 1: rounding errors grow with the logits."""
        values = np.abs(output[output > PADDING_LOGIT / 2])
        return float(max(1.0, values.max(initial=0.0)))

    def margin(
        self, outputs: Mapping[str, np.ndarray], fitted: Fitted, tokens: Any = None
    ) -> np.ndarray:
        """Return how much the logits may change, [B], in their unit.

        That is a quarter of the lead of the best answer, as two logits of each of two answers may
        change; and half the lead of the n best starts and ends, which decide the score.
        """
        logits = np.asarray(outputs["logits"])
        n_best = answer_records.best_answers(
            logits,
            np.stack([tokens["starts"], tokens["ends"]], axis=-1),
            np.asarray(tokens["own"]),
            np.asarray(tokens["row"]),
            int(fitted["n_best"][0]),
            int(fitted["max_answer_length"][0]),
        )
        scores = n_best.scores()
        is_entry = np.arange(scores.shape[1]) < n_best.counts[:, None]
        # The same passage in another window is the same answer.
        is_other = is_entry & (n_best.spans != n_best.spans[:, :1]).any(axis=-1)
        lead = scores[:, 0] - np.where(is_other, scores, -np.inf).max(axis=1)
        lead = np.where(n_best.counts > 0, lead, np.inf)
        if (threshold := _threshold(fitted)) is not None:
            from_null = np.abs(n_best.margins() - threshold)
            is_null = n_best.margins() > threshold
            lead = np.where(is_null, from_null, np.minimum(lead, from_null))
        of_rows = lead / 4
        by_size = np.sort(logits, axis=1)[:, ::-1]
        if (count := int(fitted["n_best"][0])) < logits.shape[1]:
            gap = by_size[:, count - 1] - by_size[:, count]  # [E, 2]
            # A window of fewer tokens has them all.
            gap = np.where(by_size[:, count] > PADDING_LOGIT / 2, gap, np.inf).min(axis=-1)
            np.minimum.at(of_rows, np.asarray(tokens["row"]), gap / 2)
        return of_rows / self.unit(logits, fitted)


def _threshold(fitted: Fitted) -> float | None:
    """Return the threshold of no answer; None: every row has an answer."""
    return float(fitted["null_threshold"][0]) if "null_threshold" in fitted else None


def _is_null(records: Answers, fitted: Fitted) -> np.ndarray:
    """Return the rows that are answered with no answer, bool [N]."""
    threshold = _threshold(fitted)
    return records.margins > (np.inf if threshold is None else threshold)


def _final_scores(records: Answers, fitted: Fitted) -> squad_metrics.Scores:
    """Return the scores of the answers, with no answer where the threshold says so."""
    threshold = _threshold(fitted)
    if threshold is None:
        return records.scores
    return squad_metrics.apply_threshold(records.scores, records.margins, threshold)


def _has_null(targets: Ragged) -> bool:
    """Return whether rows with an answer and rows without one are told apart."""
    return bool((targets.lengths == 0).any())


def _ordered(values: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics with the default one first."""
    return {"f1": values["f1"], **values}


def _word_table(words: Sequence[str], scores: squad_metrics.Scores) -> Table:
    """Return the metrics of the questions that begin with each of the most frequent words."""
    array = np.array(words, dtype=str)
    names, counts = np.unique(array, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] >= answer_records.FEWEST_QUESTIONS]
    shown = names[order][: answer_records.QUESTION_WORDS]
    rows: list[list[str | int | float]] = []
    for name in [*shown, None]:
        of_word = array == name if name is not None else ~np.isin(array, shown)
        if of_word.any():
            values = [float(v[of_word].mean()) for v in (scores.f1, scores.exact)]
            rows.append(["other" if name is None else name, *values, int(of_word.sum())])
    lowest_first = sorted(range(len(rows)), key=lambda i: rows[i][1])
    header = ["first word", "f1", "exact_match", "questions"]
    return Table("By the first word of the question", header, rows, lowest_first)


TASK = QuestionAnswering()
