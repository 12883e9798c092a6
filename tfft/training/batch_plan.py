"""Which rows each step of a training takes, and where a resumed training continues.

The batches of an epoch are a function of the seed, the epoch and the lengths of the rows
(`data.batches.plan`), so the position in the data is the step number alone: a training that
resumes at step s takes the same batches from there on as one that was not interrupted.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tfft.config import Config, TrainConfig
from tfft.data import Datasets, batches
from tfft.utils import console


@dataclass(frozen=True)
class BatchPlan:
    """The batches of a training.

    Attributes:
        bucket_lengths: lengths in tokens that batches are padded to; for images one, without a
            meaning.
        per_epoch: steps of an epoch.
        total: steps of the whole training.
    """

    bucket_lengths: tuple[int, ...]
    per_epoch: int
    total: int

    @classmethod
    def create(cls, config: Config, data: Datasets, static: bool = False) -> "BatchPlan":
        """Choose the buckets for the lengths of the training rows, and log the share of padding.

        Args:
            static: one bucket, of the largest length, as TPUs need it.
        """
        train = config.train
        bucket_lengths = batches.choose_bucket_lengths(
            data.train.lengths, 1 if static else train.buckets
        )
        # The number of batches does not depend on the epoch, so the first one stands for all.
        first_epoch = batches.plan(
            data.train.lengths, train.batch_size, bucket_lengths, train.seed, 0, data.train.units
        )
        widths = ""
        if "text" in config.reads:
            share = batches.padding_share(data.train.lengths, first_epoch)
            widths = f", widths {', '.join(map(str, bucket_lengths))}, {share:.1%} padding"
        console.log(f"batches: {len(first_epoch):,} an epoch{widths}")
        return cls(bucket_lengths, len(first_epoch), len(first_epoch) * train.epochs)

    def epoch(self, data: Datasets, train: TrainConfig, epoch: int) -> list[batches.Batch]:
        """Return the batches of an epoch, counted from 0, in order."""
        split, buckets = data.train, self.bucket_lengths
        return batches.plan(
            split.lengths, train.batch_size, buckets, train.seed, epoch, split.units
        )

    def after(self, data: Datasets, train: TrainConfig, step: int) -> Iterator[batches.Batch]:
        """Iterate over the batches that follow the first `step` steps, up to the last of all."""
        # Earlier batches are not read and dropped: the plan is computed and sliced.
        first_epoch, done = divmod(step, self.per_epoch)
        for epoch in range(first_epoch, train.epochs):
            yield from self.epoch(data, train, epoch)[done if epoch == first_epoch else 0 :]
