"""The input pipeline of a run: batches of rows as `tf.data`, distributed over the replicas."""

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfft.data import Datasets, batches, model_inputs
from tfft.run import Run
from tfft.training.batch_plan import BatchPlan


class InputPipeline:
    """The batches of a run as its strategy takes them.

    Attributes:
        data: the splits.
        plan: which rows each step takes.
        train: the section `train` of the config.
        model: the model that is trained.
        reads: kinds of input of a row: `text`, `image` or both.
        replicas: number of replicas over all workers.
        train_rows: inputs of the training split; cached features where there are some.
        validation_rows: likewise of the validation split; None without one.
    """

    def __init__(self, run: Run, data: Datasets, plan: BatchPlan):
        self.data, self.plan, self._run = data, plan, run
        self.train, self.model = run.config.train, run.model
        self.reads = run.config.reads
        self._strategy = run.model.distribute_strategy
        self.replicas: int = self._strategy.num_replicas_in_sync
        # Class weights become sample weights: the loop does not call Keras' `fit`, which would map
        # them.
        targets = data.train.targets
        weights = run.task.row_weights(run.config.task, data.labels, targets)
        if run.targets is not None:
            targets = run.targets
        else:
            targets = run.task.training_targets(run.config.task, data.train, run.fitted)
        self._targets = batches.targets_of(targets, weights)
        self.read_rows()

    def read_rows(self) -> None:
        """Read the prepared rows as inputs, training images augmented as configured."""
        run, data = self._run, self.data
        self.train_rows: batches.Rows = model_inputs.augmented_rows(
            data.train, run.inputs, run.config.augmentation, len(data.labels), self.train.seed
        )
        self.validation_rows: batches.Rows | None = None
        if data.validation is not None:
            self.validation_rows = model_inputs.unaugmented_rows(data.validation, run.inputs)

    def after(self, step: int) -> Any:
        """Return an iterator over the batches that follow the first `step` steps."""
        return iter(self.dataset(step))

    def dataset(self, step: int) -> Any:
        """Return the batches that follow the first `step` steps, as Keras' `fit` takes them."""
        return self._distributed(lambda: self.plan.after(self.data, self.train, step))

    def widest(self) -> tuple[batches.Batch, Any]:
        """Return the batch that needs the most memory, and an iterator over it alone."""
        epoch = self.plan.epoch(self.data, self.train, 0)
        # The most tokens; of equal ones the longest rows, whose attention takes the square.
        widest = max(epoch, key=lambda batch: (len(batch.positions) * batch.width, batch.width))
        return widest, iter(self._distributed(lambda: iter([widest])))

    def rows(self, step: int) -> str:
        """Return text that names the rows of the batch of a step, which is counted from 1."""
        epoch, index = divmod(step - 1, self.plan.per_epoch)
        # The plan is computed again: batches are a function of the step.
        positions = self.plan.epoch(self.data, self.train, epoch)[index].positions
        train = self.data.train
        rows = {int(train.rows[train.example_rows[p]]) + 1 for p in positions}  # counted from 1
        numbers = sorted(rows)
        more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
        return f" (the batch: rows {', '.join(map(str, numbers[:8]))}{more} of the training data)"

    def static_shape(self) -> tuple[int, int]:
        """Return the rows and width of a replica's batch where all batches have one shape."""
        # Rounded up: the first replicas take the remainder.
        return -(-self.train.batch_size // self.replicas), self.plan.bucket_lengths[-1]

    def _distributed(self, batch_iterator: Callable[[], Iterator[batches.Batch]]) -> Any:
        # XLA on a TPU compiles each shape anew, so there is one.
        static = isinstance(self._strategy, tf.distribute.TPUStrategy)
        shape = self.static_shape() if static else (None, None)

        def dataset(sharding: batches.Sharding) -> tf.data.Dataset:
            source = _Restartable(batch_iterator)
            return batches.dataset(self.train_rows, self._targets, source, sharding, shape)

        if self.replicas == 1:
            # Without replicas a plain dataset, which Keras and the graph loop take as well.
            return dataset(batches.Sharding())

        def worker_dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
            # Each worker reads only the shards of its own replicas of every global batch.
            local = self.replicas // context.num_input_pipelines
            first = context.input_pipeline_id * local
            return dataset(batches.Sharding(range(first, first + local), self.replicas))

        # Not `experimental_distribute_dataset`, which splits batches by itself: here the shard of
        # each replica is part of the plan.
        return self._strategy.distribute_datasets_from_function(worker_dataset)


class _Restartable:
    """An iterable that calls a function for each iteration."""

    def __init__(self, batch_iterator: Callable[[], Iterator[batches.Batch]]):
        self._batch_iterator = batch_iterator

    def __iter__(self) -> Iterator[batches.Batch]:
        return self._batch_iterator()
