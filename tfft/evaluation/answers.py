"""The best answer to each question of a split, and how it compares with the true ones."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfft.data import Dataset
from tfft.data.answer_positions import span_text
from tfft.data.answer_targets import token_places
from tfft.evaluation import answer_spans, squad_metrics
from tfft.evaluation.answer_spans import Candidates, NBest

QUESTION_WORDS = 12  # first words of questions that have a row in a report, at most
FEWEST_QUESTIONS = 5  # that begin with such a word
_SENTENCE = re.compile(r"[^.!?\u3002\uff01\uff1f]*[.!?\u3002\uff01\uff1f]*")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Answers:
    """The best answer to each row, no answer left aside.

    Attributes:
        texts: of the answers, [N]; "" where there is no candidate.
        scores: of the answers against the true ones.
        margins: score of no answer less that of the answer, [N].
        confidence: probability of the answer among the n best, [N].
        null_confidence: probability of no answer among them, [N].
    """

    texts: list[str]
    scores: squad_metrics.Scores
    margins: np.ndarray
    confidence: np.ndarray
    null_confidence: np.ndarray

    @classmethod
    def of_texts(cls, split: Dataset, texts: Sequence[str]) -> "Answers":
        """Return answers of certain texts."""
        return cls(
            list(texts),
            _scores(split, texts),
            np.full(len(texts), -np.inf),
            np.ones(len(texts)),
            np.zeros(len(texts)),
        )


class AnswerRecords:
    """Collects the candidates of all windows of a split (a `records.Records`).

    Args:
        split: the questions.
        n_best: number of starts, of ends and of candidates of a window.
        max_answer_length: of a candidate, in tokens.
        with_null: whether no answer is one of the answers.
    """

    def __init__(self, split: Dataset, n_best: int, max_answer_length: int, with_null: bool):
        self._split, self._n_best, self._with_null = split, n_best, with_null
        self._max_answer_length = max_answer_length
        size = len(split.examples)
        self.arrays = {
            "spans": np.zeros((size, n_best, 2), np.int32),
            "logits": np.zeros((size, n_best, 2), np.float32),
            "counts": np.zeros(size, np.int32),
            "null_logits": np.zeros((size, 2), np.float32),
        }

    def put(self, positions: np.ndarray, logits: np.ndarray) -> None:
        """Record the best answers of some windows, from their logits [B, T, 2]."""
        places, is_context = token_places(self._split, positions, logits.shape[1])
        lengths = self._split.lengths[positions]
        candidates = answer_spans.window_candidates(
            logits[..., 0],
            logits[..., 1],
            places,
            is_context,
            np.arange(logits.shape[1]) < lengths[:, None],
            n_best=self._n_best,
            max_answer_length=self._max_answer_length,
        )
        for name, values in self.arrays.items():
            computed = getattr(candidates, name)
            if name in ("spans", "logits"):
                values[positions, : computed.shape[1]] = computed
            else:
                values[positions] = computed

    def merged(self) -> Answers:
        """Return the best answer to each row over its windows."""
        rows = self._split.example_rows
        n_best = answer_spans.merge(
            Candidates(**self.arrays), rows, n_best=self._n_best, with_null=self._with_null
        )
        best = n_best.best()
        index = np.arange(len(best))
        spans = np.where(best[:, None] >= 0, n_best.spans[index, best], 0)
        contexts = [self._split.raw_row(i)[-1] for i in range(len(best))]
        texts = answer_spans.texts(contexts, spans)
        probabilities = n_best.probabilities()
        return Answers(
            texts,
            _scores(self._split, texts),
            n_best.margins(),
            np.where(best >= 0, probabilities[index, best], 0.0),
            (probabilities * n_best.is_null).sum(axis=1),
        )


def best_answers(
    logits: np.ndarray,
    places: np.ndarray,
    is_context: np.ndarray,
    rows: np.ndarray,
    n_best: int,
    max_answer_length: int,
) -> NBest:
    """Return the best answers of rows from the logits of their windows.

    Args:
        logits: [E, T, 2].
        places: start and end of each token in the context, [E, T, 2].
        is_context: whether a token is one of the context, bool [E, T].
        rows: row of each window, ascending, int [E].
        n_best: number of answers.
        max_answer_length: in tokens.
    """
    candidates = answer_spans.window_candidates(
        logits[..., 0],
        logits[..., 1],
        places,
        is_context,
        n_best=n_best,
        max_answer_length=max_answer_length,
    )
    return answer_spans.merge(candidates, rows, n_best=n_best)


def true_texts(split: Dataset, position: int) -> list[str]:
    """Return the texts of the true answers to the row at a position."""
    context = split.raw_row(position)[-1]
    return [span_text(context, *span) for span in split.targets[position].tolist()]


def passage(split: Dataset, position: int, size: int = 300) -> str:
    """Return the question and what surrounds the first true answer in its context.

    Args:
        split: the questions.
        position: of the row.
        size: characters of the context, at most; its beginning where there is no answer.
    """
    question, context = split.raw_row(position)
    spans = split.targets[position].tolist()
    text = context.encode("utf-8", "surrogatepass")
    before_answer = text[: spans[0][0]].decode("utf-8", "replace") if spans else ""
    start = max(0, min(len(before_answer) - size // 3, len(context) - size))
    end = start + size
    before, after = "… " if start else "", " …" if end < len(context) else ""
    return f"{question} | {before}{context[start:end]}{after}"


def nearest_sentence(question: str, context: str) -> str:
    """Return the sentence of a context that has most words of a question; the first of several."""
    words = set(_WORD.findall(question.lower()))
    sentences = [s.strip() for s in _SENTENCE.findall(context) if s.strip()]
    shared = [len(words & set(_WORD.findall(s.lower()))) for s in sentences]
    return sentences[int(np.argmax(shared))] if sentences else ""


def _scores(split: Dataset, texts: Sequence[str]) -> squad_metrics.Scores:
    """Return the scores of a text for each row, as in SQuAD 2.0 if rows have no answer."""
    true = [true_texts(split, position) for position in range(len(split))]
    return squad_metrics.score(texts, true, no_answers=not all(true))
