"""Metrics of a split: headline metrics with intervals, baselines, the most wrong rows.

One function for the loop, for offline use and for an export: it takes logits, however they were
made.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tfft.config import EvaluateConfig
from tfft.data import Dataset, batches
from tfft.distribute import strategies
from tfft.evaluation import metrics
from tfft.spec import Details, Task
from tfft.utils import console
from tfft.utils.errors import UserError, require

AHEAD = 2  # batches whose inputs are made before they are asked for
BASELINE_ROWS = 50_000  # rows that the TF-IDF baseline learns from at most
_LEAST = float(np.exp(-30.0))  # probability of a class that a baseline never saw


@dataclass(frozen=True)
class Evaluation:
    """Everything that is known of a model on a split.

    Attributes:
        metrics: the headline metrics, `NAME`, `NAME/low`, `NAME/high` where there are intervals.
        baselines: the same metrics without intervals, by the baseline's name.
        details: of the classes and the rows.
        worst: the most wrong rows.
    """

    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]
    details: Details
    worst: list[dict[str, Any]]

    def flat(self, split: str) -> dict[str, float]:
        """Return the metrics as metrics.json holds them: `test/accuracy`, `test/accuracy/low`, ..."""
        flat = {f"{split}/{name}": value for name, value in self.metrics.items()}
        for name, values in self.baselines.items():
            flat |= {f"{split}/baseline/{name}/{k}": v for k, v in values.items()}
        return flat


def predict(model: keras.Model, split: Dataset, rows: batches.Rows, batch_size: int) -> np.ndarray:
    """Logits of every row, float32 [N, C], in the split's order; workers share the batches."""
    strategy = model.distribute_strategy
    shared = strategy.num_replicas_in_sync > 1
    workers = strategies.workers() if shared else strategies.Workers()
    logits = np.zeros((len(split), model.output_shape[-1]), np.float32)
    planned = batches.in_order(split.lengths, batch_size)[workers.index :: workers.count]
    for batch, arrays in _ahead(rows, planned):
        logits[batch.positions] = model.predict_on_batch(arrays)
    return strategies.sum_over_workers(strategy, logits) if shared else logits


def _ahead(
    rows: batches.Rows, planned: Sequence[batches.Batch]
) -> Iterator[tuple[batches.Batch, dict[str, np.ndarray]]]:
    """Each batch with its inputs, which are made while the one before is answered."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[tuple[batches.Batch, Any]] = deque()
        for batch in planned:
            waiting.append((batch, pool.submit(rows.arrays, batch)))
            if len(waiting) > AHEAD:
                before, made = waiting.popleft()
                yield before, made.result()
        for batch, made in waiting:
            yield batch, made.result()


def evaluate(
    task: Task,
    logits: np.ndarray,
    split: Dataset,
    labels: Sequence[str],
    config: EvaluateConfig,
    train: Dataset | None,
    seed: int,
    thresholds: np.ndarray | None = None,
) -> Evaluation:
    """Compute all metrics of a split; `train` is what the baselines learn from."""
    values = dict(task.metrics(logits, split.labels, thresholds))
    if config.bootstrap:
        samples = task.bootstrap(logits, split.labels, config.bootstrap, seed, thresholds)
        for name, draws in samples.items():
            low, high = metrics.interval(draws, config.confidence)
            values |= {f"{name}/low": low, f"{name}/high": high}
    details = task.details(logits, split.labels, thresholds)
    return Evaluation(
        metrics=values,
        baselines=_baselines(train, split, task, len(labels)) if config.baselines and train else {},
        details=details,
        worst=_worst(details, split, labels, config.worst),
    )


def text(evaluation: Evaluation, split: str, confidence: float) -> str:
    """The headline as a few lines."""
    lines = [f"{split}:"]
    names = [name for name in evaluation.metrics if "/" not in name]
    width = max(18, 1 + max(map(len, names)))
    for name in names:
        line = f"  {name:<{width}}{evaluation.metrics[name]:.4f}"
        if f"{name}/low" in evaluation.metrics:
            low, high = (evaluation.metrics[f"{name}/{end}"] for end in ("low", "high"))
            line += f"  [{low:.4f}, {high:.4f}] at {confidence:.0%}"
        for baseline, values in evaluation.baselines.items():
            line += f"   {baseline} {values[name]:.4f}"
        lines.append(line)
    return "\n".join(lines)


def _worst(
    details: Details, split: Dataset, labels: Sequence[str], count: int
) -> list[dict[str, Any]]:
    wrong, losses = np.flatnonzero(details.wrong), details.losses
    chosen = wrong[np.argsort(-losses[wrong], kind="stable")][:count]
    return [
        {
            "row": split.raw(int(at)),
            **details.describe(int(at), labels),
            "loss": float(losses[at]),
        }
        for at in chosen
    ]


def _baselines(
    train: Dataset, split: Dataset, task: Task, classes: int
) -> dict[str, dict[str, float]]:
    """The class frequencies, and logistic regression on words or on tiny pictures."""
    if task.multi_label:
        shares = (train.labels.sum(axis=0) + 1) / (len(train) + 2)
    else:
        counts = np.bincount(train.labels, minlength=classes)
        shares = (counts + 1) / (counts.sum() + classes)
    majority = np.tile(task.to_logits(shares), (len(split), 1))
    result = {"majority": dict(task.metrics(majority, split.labels))}
    name, features = ("tfidf", _tfidf) if task.modality == "text" else ("tiny", _tiny)
    try:
        linear = _linear_tags if task.multi_label else _linear
        logits = task.to_logits(linear(features, train, split, classes))
        result[name] = dict(task.metrics(logits, split.labels))
    except UserError as error:
        console.log(f"no {name} baseline: {error}")
    return result


def _linear(features: Any, train: Dataset, split: Dataset, classes: int) -> np.ndarray:
    """Probabilities of logistic regression, with scikit-learn's defaults, [N, C]."""
    linear, at = require("sklearn.linear_model", "baselines"), _learned_from(train)
    seen = np.unique(train.labels[at])
    learned, held = features(train, at, split)
    model = linear.LogisticRegression(max_iter=1000)
    model.fit(learned, train.labels[at])
    out = np.zeros((len(split), classes))
    out[:, seen] = model.predict_proba(held)
    return out.clip(_LEAST)


def _linear_tags(features: Any, train: Dataset, split: Dataset, classes: int) -> np.ndarray:
    """The same, one model a tag; a tag that all rows have, or none, keeps its share."""
    linear, at = require("sklearn.linear_model", "baselines"), _learned_from(train)
    learned, held = features(train, at, split)
    out = np.tile(train.labels[at].mean(axis=0, dtype=np.float64), (len(split), 1))
    for tag in range(classes):
        if 0 < out[0, tag] < 1:
            model = linear.LogisticRegression(max_iter=1000)
            model.fit(learned, train.labels[at, tag])
            out[:, tag] = model.predict_proba(held)[:, 1]
    return out


def _learned_from(train: Dataset) -> np.ndarray:
    at = np.arange(len(train))
    if len(at) <= BASELINE_ROWS:
        return at
    return np.sort(np.random.default_rng(0).choice(at, BASELINE_ROWS, replace=False))


def _tfidf(train: Dataset, at: np.ndarray, split: Dataset) -> tuple[Any, Any]:
    """Weights of the words of some training rows, and of the split."""
    vectorizer = require("sklearn.feature_extraction.text", "baselines").TfidfVectorizer()
    learned = vectorizer.fit_transform(" ".join(train.raw(int(i))) for i in at)
    return learned, vectorizer.transform(" ".join(split.raw(i)) for i in range(len(split)))


def _tiny(train: Dataset, at: np.ndarray, split: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The pictures at 8 x 8 (Torralba et al. 2008, "80 million tiny images"), from 0 to 1."""
    learned, held = (s.prepared.tiny[s.rows] / 255 for s in (train.take(at), split))
    return learned, held
