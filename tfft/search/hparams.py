"""TensorBoard's HParams page of a search: `tensorboard --logdir=WORKDIR/tensorboard`."""

import shutil
from pathlib import Path

import tensorflow as tf

from tfft.search.leaderboard import Leaderboard
from tfft.search.space import Dimension
from tfft.utils.errors import require


def write(leaderboard: Leaderboard, folder: Path) -> None:
    """Write the values, score and learning curve of every trial, replacing what `folder` holds.

    Raises:
        UserError: tensorboard is not installed.
    """
    require("tensorboard", "tensorboard")
    from tensorboard.plugins.hparams import api

    shutil.rmtree(folder, ignore_errors=True)
    # Dimensions of one path with different conditions are one hyperparameter.
    dimensions = list({d.name: d for d in leaderboard.space.dimensions}.values())

    def domain(dimension: Dimension) -> api.Domain:
        search = dimension.search
        if search.search == "choice":
            return api.Discrete(dimension.labels)
        if search.whole:
            return api.IntInterval(int(search.min or 0), int(search.max or 0))
        return api.RealInterval(float(search.min or 0), float(search.max or 0))

    with tf.summary.create_file_writer(str(folder)).as_default():
        api.hparams_config(
            hparams=[api.HParam(dimension.name, domain(dimension)) for dimension in dimensions],
            metrics=[
                api.Metric(
                    leaderboard.objective, display_name=f"validation {leaderboard.objective}"
                )
            ],
        )
    for row in leaderboard.rows:
        if row.outcome.score is None:
            continue
        with tf.summary.create_file_writer(str(folder / row.trial)).as_default():
            api.hparams(dict(row.values), trial_id=row.trial)
            for step, score in row.outcome.curve:
                tf.summary.scalar("curve", score, step=step)
            tf.summary.scalar(leaderboard.objective, row.outcome.score, step=row.outcome.epochs)
