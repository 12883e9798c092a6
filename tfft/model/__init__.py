"""The `keras.Model` of a run: backbone and head, with a train step for every strategy."""

from tfft.model.assembly import assemble, stages
from tfft.model.remat import rematerialise
from tfft.model.train_step import Model, StepReport

__all__ = ["Model", "StepReport", "assemble", "rematerialise", "stages"]
