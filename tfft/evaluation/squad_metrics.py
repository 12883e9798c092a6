"""Exact match and F1 of answers, equal to SQuAD's evaluation scripts, in numpy.

Versions 1.1 (Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text",
section 6.1) and 2.0 (Rajpurkar, Jia & Liang 2018, "Know What You Don't Know"), which has questions
without an answer. N rows. Values are shares, 0 to 1; the scripts print per cent.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tfft.evaluation import metrics

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Return a text in lower case without ASCII punctuation, English articles, extra whitespace."""
    # Punctuation goes before articles: "a.m." becomes "am", which keeps its "a".
    bare = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


@dataclass(frozen=True)
class Scores:
    """The record of each row, which all metrics are computed from.

    Attributes:
        exact: 1.0 if the predicted answer equals a true answer, else 0.0, float64 [N].
        f1: F1 of the words shared with the best true answer, float64 [N].
        has_answer: whether the row has a true answer, bool [N].
        is_answered: whether the predicted answer is not empty, bool [N].
    """

    exact: np.ndarray
    f1: np.ndarray
    has_answer: np.ndarray
    is_answered: np.ndarray


def score(
    predicted: Sequence[str], answers: Sequence[Sequence[str]], no_answers: bool = False
) -> Scores:
    """Return the scores of predicted answers, each against the nearest true answer of its row.

    Args:
        predicted: the answer of each row, [N]; empty: the context does not answer the question.
        answers: true answers of each row; none: the context does not answer the question.
        no_answers: whether rows may have no answer, as in version 2.0. A text of punctuation and
            articles alone is then equal to no answer; version 1.1 gives it an F1 of 0.

    Raises:
        ValueError: a row has no answer and `no_answers` is off, or the lengths differ.
    """
    exact, f1 = np.zeros(len(predicted)), np.zeros(len(predicted))
    for row, (text, texts) in enumerate(zip(predicted, answers, strict=True)):
        candidates = [normalize_answer(t) for t in texts]
        if no_answers:
            candidates = [c for c in candidates if c] or [""]
        elif not candidates:
            raise ValueError(
                f"row {row} has no answer; version 1.1 needs one in each row, 2.0 does not"
            )
        prediction = normalize_answer(text)
        exact[row] = prediction in candidates
        f1[row] = max(_word_f1(prediction.split(), c.split(), no_answers) for c in candidates)
    return Scores(
        exact,
        f1,
        np.array([len(texts) > 0 for texts in answers], bool),
        np.array([text != "" for text in predicted], bool),
    )


def _word_f1(predicted: list[str], true: list[str], no_answers: bool) -> float:
    """Return the harmonic mean of precision and recall of the words, each counted as it occurs."""
    if no_answers and not (predicted and true):
        return float(predicted == true)
    shared = (Counter(predicted) & Counter(true)).total()
    if not shared:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(true)
    return 2 * precision * recall / (precision + recall)


def apply_threshold(scores: Scores, margins: np.ndarray, threshold: float) -> Scores:
    """Return the scores with no answer for each row whose null margin exceeds a threshold.

    Args:
        scores: of the best answers that are not empty.
        margins: score of no answer minus that of the best answer, [N]; `na_prob` in the script.
        threshold: a larger margin means no answer; `na_prob_thresh`, `null_score_diff_threshold`.
    """
    is_null = np.asarray(margins) > threshold
    return replace(
        scores,
        exact=np.where(is_null, ~scores.has_answer, scores.exact),
        f1=np.where(is_null, ~scores.has_answer, scores.f1),
        is_answered=scores.is_answered & ~is_null,
    )


def headline(scores: Scores, no_answers: bool = False) -> dict[str, float]:
    """Compute the mean scores.

    Args:
        scores: of the rows.
        no_answers: whether to add the means over the rows with an answer (`HasAns`) and without
            (`NoAns`), by the names of version 2.0; a part without rows is left out.
    """
    weights = np.ones((1, len(scores.exact)))
    return {name: float(value[0]) for name, value in _means(scores, no_answers, weights).items()}


def _means(scores: Scores, no_answers: bool, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return the mean scores of resamples, each [draws].

    Args:
        scores: of the rows.
        no_answers: see `headline`.
        weights: how often each draw has each row, [draws, N].
    """
    parts = {"": np.ones(len(scores.exact), bool)}
    if no_answers:
        parts |= {"HasAns_": scores.has_answer, "NoAns_": ~scores.has_answer}
    means = {}
    for prefix, is_part in parts.items():
        if prefix and not is_part.any():
            continue
        rows = weights @ is_part  # [draws]
        # The scripts of the two versions name the same number differently.
        exact_name = "exact" if prefix else "exact_match"
        means[f"{prefix}{exact_name}"] = metrics.ratio(weights @ (scores.exact * is_part), rows)
        means[f"{prefix}f1"] = metrics.ratio(weights @ (scores.f1 * is_part), rows)
    return means


def bootstrap(
    scores: Scores, draws: int, seed: int, no_answers: bool = False
) -> dict[str, np.ndarray]:
    """Compute the headline metrics of `draws` bootstrap resamples of the rows, each [draws].

    A part (see `headline`) that a draw has no row of is 0 there.
    """
    generator = np.random.default_rng(seed)
    rows = len(scores.exact)
    parts = []
    for size in metrics.chunks(draws, max(1, rows)):
        weights = generator.multinomial(rows, np.full(rows, 1 / rows), size=size)
        parts.append(_means(scores, no_answers, weights.astype(np.float64)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def fit_threshold(values: np.ndarray, margins: np.ndarray, scores: Scores) -> float:
    """Return the threshold with the best mean, for `apply_threshold`.

    It is the midpoint between two margins, so that a rounding error of a margin changes no answer;
    1 beyond the extreme margin if all rows or none are answered. The lowest of equally good ones.
    It differs from `find_best_thresh` of the script for version 2.0 where that returns 0.0 if no
    answer in any row is best, separates rows of equal margins, or takes any text for wrong in a row
    without an answer, also one that `score` takes for none, as "the".

    Args:
        values: `scores.exact` or `scores.f1`, [N]; N > 0.
        margins: null margin of each row, [N]; see `apply_threshold`.
        scores: of the best answers, without a threshold.
    """
    gains = values - ~scores.has_answer  # what the answer of a row adds to the sum of scores
    order = np.argsort(margins, kind="stable")
    none_answered = float(np.count_nonzero(~scores.has_answer))
    # Of scores where the first k rows are answered, k = 0 to N.
    sums = np.cumsum(np.concatenate([[none_answered], gains[order]]))
    ranked = np.asarray(margins, np.float64)[order]
    # No threshold lies between equal margins.
    sums[1:-1][ranked[1:] == ranked[:-1]] = -np.inf
    best = int(sums.argmax())
    if best == 0:
        return float(ranked[0]) - 1.0
    if best == len(ranked):
        return float(ranked[-1]) + 1.0
    return float(ranked[best - 1] + ranked[best]) / 2
