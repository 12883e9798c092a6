"""The `keras.Model` that is trained: backbone and head joined, with a train step that is right
under every strategy."""

from tfft.model.assembly import assemble, stages
from tfft.model.remat import rematerialise
from tfft.model.train_step import Model, StepReport

__all__ = ["Model", "StepReport", "assemble", "rematerialise", "stages"]
