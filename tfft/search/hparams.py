"""A search for TensorBoard's HParams page: `tensorboard --logdir=WORKDIR/tensorboard`."""

import shutil
from pathlib import Path

import tensorflow as tf

from tfft.search.leaderboard import Leaderboard
from tfft.search.space import Dimension
from tfft.utils.errors import require


def write(board: Leaderboard, folder: Path) -> None:
    """Values, score and learning curve of every trial, anew.

    Raises:
        UserError: tensorboard is not installed.
    """
    require("tensorboard", "tensorboard")
    from tensorboard.plugins.hparams import api

    shutil.rmtree(folder, ignore_errors=True)
    dimensions = list({d.name: d for d in board.space.dimensions}.values())

    def domain(one: Dimension) -> api.Domain:
        search = one.search
        if search.search == "choice":
            return api.Discrete(one.labels)
        if search.whole:
            return api.IntInterval(int(search.min or 0), int(search.max or 0))
        return api.RealInterval(float(search.min or 0), float(search.max or 0))

    with tf.summary.create_file_writer(str(folder)).as_default():
        api.hparams_config(
            hparams=[api.HParam(one.name, domain(one)) for one in dimensions],
            metrics=[api.Metric(board.objective, display_name=f"validation {board.objective}")],
        )
    for row in board.rows:
        if row.outcome.score is None:
            continue
        with tf.summary.create_file_writer(str(folder / row.trial)).as_default():
            api.hparams(dict(row.values), trial_id=row.trial)
            for step, score in row.outcome.curve:
                tf.summary.scalar("curve", score, step=step)
            tf.summary.scalar(board.objective, row.outcome.score, step=row.outcome.epochs)
