"""The `keras.Model` of a run: backbone and head, with a train step for every strategy."""

from tfft.model.assembly import assemble, stages
from tfft.model.losses import Loss
from tfft.model.remat import rematerialise
from tfft.model.step_options import StepOptions, StepReport
from tfft.model.train_step import Model

__all__ = ["Loss", "Model", "StepOptions", "StepReport", "assemble", "rematerialise", "stages"]
