"""The figures of a split: headline metrics with intervals, baselines, the most wrong rows.

One function for the loop, for offline use and for an export: it takes logits, however they were
made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tfft import distribute, log, metrics
from tfft.config import EvaluateConfig
from tfft.data import Dataset, batches
from tfft.errors import UserError, require
from tfft.spec import Task

BASELINE_ROWS = 50_000  # rows that the TF-IDF baseline learns from at most


@dataclass(frozen=True)
class Evaluation:
    """Everything that is known of a model on a split.

    Attributes:
        figures: headline figures, `NAME`, `NAME/low`, `NAME/high` where there are intervals.
        baselines: the same figures without intervals, by the baseline's name.
        confusion: counts [C, C], true class down.
        by_class: precision, recall, f1 and support, each [C].
        reliability: count, confidence and accuracy in bins of confidence.
        worst: the most wrong rows.
    """

    figures: dict[str, float]
    baselines: dict[str, dict[str, float]]
    confusion: np.ndarray
    by_class: dict[str, np.ndarray]
    reliability: dict[str, np.ndarray]
    worst: list[dict[str, Any]]

    def flat(self, split: str) -> dict[str, float]:
        """The figures as metrics.json holds them: `test/accuracy`, `test/accuracy/low`, ..."""
        flat = {f"{split}/{name}": value for name, value in self.figures.items()}
        for name, figures in self.baselines.items():
            flat |= {f"{split}/baseline/{name}/{k}": v for k, v in figures.items()}
        return flat


def predict(model: keras.Model, split: Dataset, rows: batches.Rows, batch_size: int) -> np.ndarray:
    """Logits of every row, float32 [N, C], in the split's order; workers share the batches."""
    strategy = model.distribute_strategy
    shared = strategy.num_replicas_in_sync > 1
    workers = distribute.workers() if shared else distribute.Workers()
    logits = np.zeros((len(split), model.output_shape[-1]), np.float32)
    for batch in batches.in_order(split.lengths, batch_size)[workers.index :: workers.count]:
        out = model.predict_on_batch(rows.arrays(batch))
        logits[batch.positions] = out
    return distribute.sum_over_workers(strategy, logits) if shared else logits


def evaluate(
    task: Task,
    logits: np.ndarray,
    split: Dataset,
    labels: Sequence[str],
    config: EvaluateConfig,
    train: Dataset | None,
    seed: int,
) -> Evaluation:
    """All figures of a split; `train` is what the baselines learn from."""
    figures = dict(task.metrics(logits, split.labels))
    if config.bootstrap:
        samples = task.resampled(logits, split.labels, config.bootstrap, seed)
        for name, values in samples.items():
            low, high = metrics.interval(values, config.confidence)
            figures |= {f"{name}/low": low, f"{name}/high": high}
    probabilities = metrics.softmax(logits)
    matrix = metrics.confusion(probabilities.argmax(axis=1), split.labels, len(labels))
    by_class = metrics.from_confusion(matrix)
    return Evaluation(
        figures=figures,
        baselines=_baselines(train, split, task, len(labels)) if config.baselines and train else {},
        confusion=matrix,
        by_class={k: by_class[k] for k in ("precision", "recall", "f1", "support")},
        reliability=metrics.reliability(probabilities, split.labels),
        worst=_worst(probabilities, split, labels, config.worst),
    )


def text(evaluation: Evaluation, split: str, confidence: float) -> str:
    """The headline as a few lines."""
    lines = [f"{split}:"]
    names = [name for name in evaluation.figures if "/" not in name]
    for name in names:
        line = f"  {name:<18}{evaluation.figures[name]:.4f}"
        if f"{name}/low" in evaluation.figures:
            low, high = (evaluation.figures[f"{name}/{end}"] for end in ("low", "high"))
            line += f"  [{low:.4f}, {high:.4f}] at {confidence:.0%}"
        for baseline, figures in evaluation.baselines.items():
            line += f"   {baseline} {figures[name]:.4f}"
        lines.append(line)
    return "\n".join(lines)


def _worst(
    probabilities: np.ndarray, split: Dataset, labels: Sequence[str], count: int
) -> list[dict[str, Any]]:
    losses = metrics.log_losses(probabilities, split.labels)
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != split.labels)
    chosen = wrong[np.argsort(-losses[wrong], kind="stable")][:count]
    return [
        {
            "texts": split.texts(int(at)),
            "label": labels[split.labels[at]],
            "predicted": labels[int(probabilities[at].argmax())],
            "confidence": float(probabilities[at].max()),
            "loss": float(losses[at]),
        }
        for at in chosen
    ]


def _baselines(
    train: Dataset, split: Dataset, task: Task, classes: int
) -> dict[str, dict[str, float]]:
    """The class frequencies, and TF-IDF with logistic regression."""
    counts = np.bincount(train.labels, minlength=classes)
    prior = np.log((counts + 1) / (counts.sum() + classes)).astype(np.float32)
    majority = np.tile(prior, (len(split), 1))
    result = {"majority": dict(task.metrics(majority, split.labels))}
    try:
        result["tfidf"] = dict(task.metrics(_tfidf(train, split, classes), split.labels))
    except UserError as error:
        log.say(f"no TF-IDF baseline: {error}")
    return result


def _tfidf(train: Dataset, split: Dataset, classes: int) -> np.ndarray:
    """Log-probabilities of logistic regression over words, with scikit-learn's defaults, [N, C]."""
    features = require("sklearn.feature_extraction.text", "baselines")
    linear = require("sklearn.linear_model", "baselines")
    vectorizer = features.TfidfVectorizer()
    at = np.arange(len(train))
    if len(at) > BASELINE_ROWS:
        at = np.sort(np.random.default_rng(0).choice(at, BASELINE_ROWS, replace=False))
    seen = np.unique(train.labels[at])
    learned = vectorizer.fit_transform(" ".join(train.texts(int(i))) for i in at)
    model = linear.LogisticRegression(max_iter=1000)
    model.fit(learned, train.labels[at])
    out = np.full((len(split), classes), -30.0, np.float32)
    held = vectorizer.transform(" ".join(split.texts(i)) for i in range(len(split)))
    out[:, seen] = model.predict_log_proba(held).clip(-30.0)
    return out
