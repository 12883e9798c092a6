"""Metrics of a split: headline metrics with intervals, baselines, the most wrong rows.

Training, offline evaluation and exports share `evaluate`: it takes logits from any source.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
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

NUM_PREFETCHED = 2  # batches whose inputs are prepared in advance
BASELINE_ROWS = 50_000  # training rows of a baseline at most
# Not 0: the log loss of a row of such a class would be infinite.
_MIN_PROBABILITY = float(np.exp(-30.0))  # probability of a class without training rows


@dataclass(frozen=True)
class Evaluation:
    """The results of a model on a split.

    Attributes:
        metrics: headline metrics, `NAME`, and their intervals, `NAME/low` and `NAME/high`.
        baselines: name of a baseline -> its metrics, without intervals.
        details: metrics by class and losses by row.
        worst: the most wrong rows, most wrong first.
    """

    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]
    details: Details
    worst: list[dict[str, Any]]

    def flat(self, split: str) -> dict[str, float]:
        """Return the metrics with the keys of metrics.json.

        The keys are `test/accuracy`, `test/accuracy/low`, `test/baseline/tfidf/accuracy` and so on.

        Args:
            split: name of the split, the first part of each key.
        """
        flat = {f"{split}/{name}": value for name, value in self.metrics.items()}
        for name, values in self.baselines.items():
            flat |= {f"{split}/baseline/{name}/{k}": v for k, v in values.items()}
        return flat


def predict(model: keras.Model, split: Dataset, rows: batches.Rows, batch_size: int) -> np.ndarray:
    """Compute the logits of every row, float32 [N, C], in the order of the split.

    With several workers, each computes a part of the batches and all return the full logits.

    Args:
        model: model to run.
        split: split of N rows.
        rows: model inputs of the split.
        batch_size: rows per batch.
    """
    strategy = model.distribute_strategy
    # A model without replicas may be run by one worker alone (an export of the chief), so the rows
    # are divided over the workers only where the model itself is distributed.
    is_distributed = strategy.num_replicas_in_sync > 1
    workers = strategies.workers() if is_distributed else strategies.Workers()
    logits = np.zeros((len(split), model.output_shape[-1]), np.float32)
    # Every n-th batch: all workers get short and long rows.
    planned_batches = batches.plan_sorted(split.lengths, batch_size)[workers.index :: workers.count]
    for batch, arrays in _prefetch(rows, planned_batches):
        logits[batch.positions] = model.predict_on_batch(arrays)
    # The rows of other workers are zeros here, so the sum joins the parts exactly.
    return strategies.sum_over_workers(strategy, logits) if is_distributed else logits


def _prefetch(
    rows: batches.Rows, planned_batches: Sequence[batches.Batch]
) -> Iterator[tuple[batches.Batch, dict[str, np.ndarray]]]:
    """Yield each batch with its inputs; a thread prepares the next ones during the prediction."""
    with ThreadPoolExecutor(1) as pool:
        pending: deque[tuple[batches.Batch, Any]] = deque()
        for batch in planned_batches:
            pending.append((batch, pool.submit(rows.arrays, batch)))
            # A bound, since `submit` would prepare all batches at once.
            if len(pending) > NUM_PREFETCHED:
                ready, arrays = pending.popleft()
                yield ready, arrays.result()
        for batch, arrays in pending:
            yield batch, arrays.result()


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
    """Compute all metrics of a split.

    Args:
        task: task whose metrics are computed.
        logits: [N, C].
        split: split of N rows.
        labels: names of the C classes.
        config: section `evaluate`.
        train: training rows, from which the baselines learn; None for no baselines.
        seed: seed of the bootstrap.
        thresholds: [C] for tasks with several labels per row, otherwise None.
    """
    # 1. The metrics and their bootstrap intervals.
    values = dict(task.metrics(logits, split.labels, thresholds))
    if config.bootstrap:
        samples = task.bootstrap(logits, split.labels, config.bootstrap, seed, thresholds)
        for name, draws in samples.items():
            low, high = metrics.interval(draws, config.confidence)
            values |= {f"{name}/low": low, f"{name}/high": high}
    # 2. What the report shows beyond them, and the baselines.
    details = task.details(logits, split.labels, thresholds)
    return Evaluation(
        metrics=values,
        baselines=_baselines(train, split, task, len(labels)) if config.baselines and train else {},
        details=details,
        worst=_worst(details, split, labels, config.worst),
    )


def table(evaluations: Mapping[str, Evaluation], confidence: float) -> str:
    """Return the headline metrics as a text table: a line for each metric, a column for each split.

    The baselines have columns of their own, for the last of the splits that has any.

    Args:
        evaluations: name of a split -> its evaluation; not empty.
        confidence: of the intervals, between 0 and 1.
    """
    compared = {name: e.baselines for name, e in evaluations.items() if e.baselines}
    split, baselines = next(reversed(compared.items()), ("", {}))
    header = ["", *evaluations, *baselines]
    rows = [header]
    for metric in (name for name in next(iter(evaluations.values())).metrics if "/" not in name):
        values = [_with_interval(evaluation.metrics, metric) for evaluation in evaluations.values()]
        rows.append([metric, *values, *(f"{v[metric]:.4f}" for v in baselines.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    has_intervals = any("[" in line for line in lines[1:])
    notes = [f"in brackets: {100 * confidence:g}% intervals"] if has_intervals else []
    notes += [f"{', '.join(baselines)}: baselines on {split}"] if baselines else []
    return "\n".join([*lines, *(["; ".join(notes)] if notes else [])])


def _with_interval(metrics: Mapping[str, float], name: str) -> str:
    """Return a metric and, if there is one, its interval as text."""
    value = f"{metrics[name]:.4f}"
    if f"{name}/low" not in metrics:
        return value
    return f"{value} [{metrics[f'{name}/low']:.4f}, {metrics[f'{name}/high']:.4f}]"


def _worst(
    details: Details, split: Dataset, labels: Sequence[str], count: int
) -> list[dict[str, Any]]:
    """Return the `count` wrong rows with the highest losses."""
    wrong_positions, losses = np.flatnonzero(details.wrong), details.losses
    # Stable: equal losses keep the order of the rows, so that two runs list the same ones.
    positions = wrong_positions[np.argsort(-losses[wrong_positions], kind="stable")][:count]
    return [
        {
            "row": split.raw_row(int(position)),
            **details.describe(int(position), labels),
            "loss": float(losses[position]),
        }
        for position in positions
    ]


def _baselines(
    train: Dataset, split: Dataset, task: Task, num_classes: int
) -> dict[str, dict[str, float]]:
    """Return the metrics of the class frequencies and of logistic regression on simple features."""
    # Laplace's rule: one more row of each outcome, so that no share is 0 or 1.
    if task.section.multi_label:
        shares = (train.labels.sum(axis=0) + 1) / (len(train) + 2)
    else:
        counts = np.bincount(train.labels, minlength=num_classes)
        shares = (counts + 1) / (counts.sum() + num_classes)
    majority = np.tile(task.to_logits(shares), (len(split), 1))
    baselines = {"majority": dict(task.metrics(majority, split.labels))}
    name, features = ("tfidf", _tfidf) if task.section.modality == "text" else ("tiny", _tiny)
    try:
        fit_linear = _linear_labels if task.section.multi_label else _linear_classes
        logits = task.to_logits(fit_linear(features, train, split, num_classes))
        baselines[name] = dict(task.metrics(logits, split.labels))
    except UserError as error:
        console.log(f"no {name} baseline: {error}")
    return baselines


def _linear_classes(features: Any, train: Dataset, split: Dataset, num_classes: int) -> np.ndarray:
    """Return probabilities of logistic regression, with scikit-learn's defaults, [N, C]."""
    # scikit-learn is an optional dependency; without it the caller logs why there is no baseline.
    linear_model = require("sklearn.linear_model", "baselines")
    positions = _baseline_positions(train)
    seen_classes = np.unique(train.labels[positions])
    train_features, split_features = features(train, positions, split)
    model = linear_model.LogisticRegression(max_iter=1000)
    model.fit(train_features, train.labels[positions])
    probabilities = np.zeros((len(split), num_classes))
    # The columns of scikit-learn are the classes that it saw, in order.
    probabilities[:, seen_classes] = model.predict_proba(split_features)
    return probabilities.clip(_MIN_PROBABILITY)


def _linear_labels(features: Any, train: Dataset, split: Dataset, num_classes: int) -> np.ndarray:
    """Return probabilities of one logistic regression for each class, [N, C].

    A class that all training rows have, or none, keeps its frequency: there is nothing to fit.
    """
    linear_model = require("sklearn.linear_model", "baselines")
    positions = _baseline_positions(train)
    train_features, split_features = features(train, positions, split)
    probabilities = np.tile(train.labels[positions].mean(axis=0, dtype=np.float64), (len(split), 1))
    for index in range(num_classes):
        if 0 < probabilities[0, index] < 1:
            model = linear_model.LogisticRegression(max_iter=1000)
            model.fit(train_features, train.labels[positions, index])
            probabilities[:, index] = model.predict_proba(split_features)[:, 1]
    return probabilities


def _baseline_positions(train: Dataset) -> np.ndarray:
    """Return the positions of the training rows that baselines learn from."""
    positions = np.arange(len(train))
    if len(positions) <= BASELINE_ROWS:
        return positions
    # A fixed seed: the baseline does not change with the seed of the run.
    return np.sort(np.random.default_rng(0).choice(positions, BASELINE_ROWS, replace=False))


def _tfidf(train: Dataset, positions: np.ndarray, split: Dataset) -> tuple[Any, Any]:
    """Return TF-IDF features of the training rows at `positions` and of the split."""
    vectorizer = require("sklearn.feature_extraction.text", "baselines").TfidfVectorizer()
    # A row may have two texts; the bag of words of both is one.
    train_features = vectorizer.fit_transform(" ".join(train.raw_row(int(i))) for i in positions)
    return train_features, vectorizer.transform(
        " ".join(split.raw_row(i)) for i in range(len(split))
    )


def _tiny(train: Dataset, positions: np.ndarray, split: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return images at 8 x 8 pixels, 0 to 1 (Torralba et al. 2008, "80 million tiny images")."""
    train_features, split_features = (
        s.prepared.tiny[s.rows] / 255 for s in (train.take(positions), split)
    )
    return train_features, split_features
