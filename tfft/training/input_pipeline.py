"""The batches of a run: which rows each step takes, and how they reach the devices."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfft.config import Config, TrainConfig
from tfft.data import Datasets, batches, model_inputs
from tfft.run import Run
from tfft.utils import console


@dataclass(frozen=True)
class BatchPlan:
    """The batches of a training.

    Attributes:
        buckets: the widths that batches are padded to; one, that means nothing, for pictures.
        per_epoch: steps of an epoch; `total` of the whole training.
    """

    buckets: tuple[int, ...]
    per_epoch: int
    total: int

    @classmethod
    def make(cls, config: Config, data: Datasets, static: bool = False) -> "BatchPlan":
        """Choose the widths for the lengths that there are, and say what they cost.

        `static`: one width, the largest, as a TPU wants it.
        """
        train = config.train
        buckets = batches.widths(data.train.lengths, 1 if static else train.buckets)
        first = batches.plan(data.train.lengths, train.batch_size, buckets, train.seed, 0)
        told = ""
        if config.task.modality == "text":
            share = batches.padding_share(data.train.lengths, first)
            told = f", widths {', '.join(map(str, buckets))}, {share:.1%} padding"
        console.log(f"batches: {len(first):,} an epoch{told}")
        return cls(buckets, len(first), len(first) * train.epochs)

    def epoch(self, data: Datasets, train: TrainConfig, epoch: int) -> list[batches.Batch]:
        """The batches of an epoch, in order."""
        lengths = data.train.lengths
        return batches.plan(lengths, train.batch_size, self.buckets, train.seed, epoch)

    def after(self, data: Datasets, train: TrainConfig, step: int) -> Iterator[batches.Batch]:
        """All batches from a step on."""
        for epoch in range(step // self.per_epoch, train.epochs):
            skipped = step % self.per_epoch if epoch == step // self.per_epoch else 0
            yield from self.epoch(data, train, epoch)[skipped:]


class InputPipeline:
    """The batches of a run as the strategy wants them.

    Attributes:
        replicas: all replicas of the run.
        train_rows, validation_rows: the inputs of the two splits; set to stored ones where there
            is a cached prefix.
    """

    def __init__(self, result: Run, data: Datasets, plan: BatchPlan):
        self.data, self.plan, self._result = data, plan, result
        self.train = result.config.train
        self._strategy = result.model.distribute_strategy
        self.replicas = self._strategy.num_replicas_in_sync
        by_class = result.task.sample_weights(result.config.task, data.labels, data.train.labels)
        ones = np.ones(len(data.train), np.float32)
        self._weights = ones if by_class is None else by_class[data.train.labels].astype(np.float32)
        self._targets = data.train.labels if result.targets is None else result.targets
        self.read_rows()

    def read_rows(self) -> None:
        """Take what was prepared of the rows as inputs; training pictures changed as configured."""
        result, data = self._result, self.data
        config, inputs = result.config, result.inputs
        self.train_rows: batches.Rows = model_inputs.changed(
            data.train, inputs, config.augmentation, len(data.labels), self.train.seed
        )
        self.validation_rows: batches.Rows | None = None
        if data.validation is not None:
            self.validation_rows = model_inputs.plain(data.validation, inputs)

    def after(self, step: int) -> Any:
        """An iterator over the batches from a step on."""
        return iter(self.dataset(step))

    def dataset(self, step: int) -> Any:
        """The batches from a step on, as Keras' `fit` takes them."""
        return self._distributed(lambda: self.plan.after(self.data, self.train, step))

    def widest(self) -> tuple[batches.Batch, Any]:
        """The batch that needs the most memory, and an iterator that gives it alone."""
        every = self.plan.epoch(self.data, self.train, 0)
        chosen = max(every, key=lambda batch: (len(batch.positions) * batch.width, batch.width))
        return chosen, iter(self._distributed(lambda: iter([chosen])))

    def rows(self, step: int) -> str:
        """Names the rows of the batch that a step took."""
        epoch, at = divmod(step - 1, self.plan.per_epoch)
        positions = self.plan.epoch(self.data, self.train, epoch)[at].positions
        numbers = sorted(int(self.data.train.rows[p]) + 1 for p in positions)
        more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
        return f" (the batch: rows {', '.join(map(str, numbers[:8]))}{more} of the training data)"

    def _distributed(self, made: Any) -> Any:
        static = isinstance(self._strategy, tf.distribute.TPUStrategy)
        shape = self.static_shape() if static else (None, None)

        def of(pieces: batches.Pieces) -> tf.data.Dataset:
            source = _Again(made)
            return batches.dataset(
                self.train_rows, self._targets, self._weights, source, pieces, shape
            )

        if self.replicas == 1:
            return of(batches.Pieces())

        def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
            local = self.replicas // context.num_input_pipelines
            first = context.input_pipeline_id * local
            return of(batches.Pieces(range(first, first + local), self.replicas))

        return self._strategy.distribute_datasets_from_function(of_worker)

    def static_shape(self) -> tuple[int, int]:
        """Rows and width of what a replica gets, where every element must have the same."""
        return -(-self.train.batch_size // self.replicas), self.plan.buckets[-1]


class _Again:
    """Calls `made` for each iteration."""

    def __init__(self, made: Any):
        self._made = made

    def __iter__(self) -> Iterator[batches.Batch]:
        return self._made()
