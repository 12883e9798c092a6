"""The config: the YAML as a strict, typed object. Loads no TensorFlow."""

from tfft.config.augmentation import AugmentationConfig
from tfft.config.base import Section
from tfft.config.data import DataConfig, Fraction, Source
from tfft.config.durations import Duration, Interval
from tfft.config.json_schema import schema
from tfft.config.load import Config, dump, load, parse, read, searches, section
from tfft.config.methods import MethodConfig
from tfft.config.regularization import RegularizationConfig, SurgeryConfig
from tfft.config.saved import load_saved, read_saved
from tfft.config.sections import (
    DistributeConfig,
    EvaluateConfig,
    ExportConfig,
    MaskRule,
    ModelConfig,
    ModelSection,
    OptimizerConfig,
    TowersConfig,
    TrainConfig,
)
from tfft.config.tasks import TASK_SECTIONS, TaskConfig, TaskSection
from tfft.config.tune import Halving, Search, TuneConfig

__all__ = [
    "TASK_SECTIONS",
    "AugmentationConfig",
    "Config",
    "DataConfig",
    "DistributeConfig",
    "Duration",
    "EvaluateConfig",
    "ExportConfig",
    "Fraction",
    "Halving",
    "Interval",
    "MaskRule",
    "MethodConfig",
    "ModelConfig",
    "ModelSection",
    "OptimizerConfig",
    "RegularizationConfig",
    "Search",
    "Section",
    "Source",
    "SurgeryConfig",
    "TaskConfig",
    "TaskSection",
    "TowersConfig",
    "TrainConfig",
    "TuneConfig",
    "dump",
    "load",
    "load_saved",
    "parse",
    "read",
    "read_saved",
    "schema",
    "searches",
    "section",
]
