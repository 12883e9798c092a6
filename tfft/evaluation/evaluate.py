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
from tfft.spec import Details, Fitted, Task

NUM_PREFETCHED = 2  # batches whose inputs are prepared in advance


@dataclass(frozen=True)
class Evaluation:
    """The results of a model on a split.

    Attributes:
        metrics: headline metrics, `NAME`, and their intervals, `NAME/low` and `NAME/high`.
        baselines: name of a baseline -> its metrics, without intervals.
        details: what the report shows, and losses by row.
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


def predict(
    task: Task,
    model: keras.Model,
    split: Dataset,
    rows: batches.Rows,
    batch_size: int,
    fitted: Fitted,
) -> Any:
    """Compute the record of every row, such as its logits, in the order of the split.

    With several workers, each computes a part of the batches and all return the records of all.

    Args:
        task: the task of the model.
        model: model to run.
        split: split of N rows.
        rows: model inputs of the split.
        batch_size: examples per batch.
        fitted: the fitted values of the model.

    Returns:
        What `task.records` merges: for most tasks logits, float32 [N, C].
    """
    strategy = model.distribute_strategy
    # A model without replicas may be run by one worker alone (an export of the chief), so the rows
    # are divided over the workers only where the model itself is distributed.
    is_distributed = strategy.num_replicas_in_sync > 1
    workers = strategies.workers() if is_distributed else strategies.Workers()
    records = task.records(split, model.output_shape[-1], fitted)
    # Every n-th batch: all workers get short and long rows.
    planned_batches = batches.plan_sorted(split.lengths, batch_size)[workers.index :: workers.count]
    for batch, arrays in _prefetch(rows, planned_batches):
        records.put(batch.positions, model.predict_on_batch(arrays))
    if is_distributed:
        # What other workers computed is zeros here, so the sum joins the parts exactly.
        for name, values in records.arrays.items():
            records.arrays[name] = strategies.sum_over_workers(strategy, values)
    return records.merged()


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
    records: Any,
    split: Dataset,
    labels: Sequence[str],
    config: EvaluateConfig,
    train: Dataset | None,
    seed: int,
    fitted: Fitted,
) -> Evaluation:
    """Compute all metrics of a split.

    Args:
        task: task whose metrics are computed.
        records: what `predict` returned.
        split: split of N rows.
        labels: names of the C classes.
        config: section `evaluate`.
        train: training rows, from which the baselines learn; None for no baselines.
        seed: seed of the bootstrap.
        fitted: the fitted values of the model.
    """
    # 1. The metrics and their bootstrap intervals.
    values = dict(task.metrics(records, split.targets, fitted))
    if config.bootstrap:
        samples = task.bootstrap(records, split.targets, config.bootstrap, seed, fitted)
        for name, draws in samples.items():
            low, high = metrics.interval(draws, config.confidence)
            values |= {f"{name}/low": low, f"{name}/high": high}
    # 2. What the report shows beyond them, and the baselines.
    compared = {}
    if config.baselines and train is not None:
        # Nothing is fitted to the answers of a baseline.
        compared = {
            name: dict(task.metrics(answers, split.targets, {}))
            for name, answers in task.baselines(train, split, len(labels)).items()
        }
    details = task.details(records, split, labels, fitted)
    return Evaluation(
        metrics=values,
        baselines=compared,
        details=details,
        worst=_worst(details, split, config.worst),
    )


def table(evaluations: Mapping[str, Evaluation], confidence: float) -> str:
    """Return the headline metrics as a text table: a line for each metric, a column for each split.

    The baselines have columns of their own, for the last of the splits that has any.

    Args:
        evaluations: name of a split -> its evaluation; not empty.
        confidence: of the intervals, between 0 and 1.
    """
    compared = {name: e.baselines for name, e in evaluations.items() if e.baselines}
    split, baseline_metrics = next(reversed(compared.items()), ("", {}))
    header = ["", *evaluations, *baseline_metrics]
    rows = [header]
    for metric in (name for name in next(iter(evaluations.values())).metrics if "/" not in name):
        values = [_with_interval(evaluation.metrics, metric) for evaluation in evaluations.values()]
        rows.append([metric, *values, *(f"{v[metric]:.4f}" for v in baseline_metrics.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    has_intervals = any("[" in line for line in lines[1:])
    notes = [f"in brackets: {100 * confidence:g}% intervals"] if has_intervals else []
    if compared:
        notes.append(f"{', '.join(baseline_metrics)}: baselines on {split}")
    return "\n".join([*lines, *(["; ".join(notes)] if notes else [])])


def _with_interval(metrics: Mapping[str, float], name: str) -> str:
    """Return a metric and, if there is one, its interval as text."""
    value = f"{metrics[name]:.4f}"
    if f"{name}/low" not in metrics:
        return value
    return f"{value} [{metrics[f'{name}/low']:.4f}, {metrics[f'{name}/high']:.4f}]"


def _worst(details: Details, split: Dataset, count: int) -> list[dict[str, Any]]:
    """Return the `count` wrong rows with the highest losses."""
    wrong_positions, losses = np.flatnonzero(details.wrong), details.losses
    # Stable: equal losses keep the order of the rows, so that two runs list the same ones.
    positions = wrong_positions[np.argsort(-losses[wrong_positions], kind="stable")][:count]
    return [
        {
            "row": split.raw_row(int(position)),
            **details.describe(int(position)),
            "loss": float(losses[position]),
        }
        for position in positions
    ]
