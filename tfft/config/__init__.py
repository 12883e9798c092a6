"""The whole YAML as one typed, strict object. Importing this loads no TensorFlow."""

from tfft.config.augmentation import AugmentationConfig
from tfft.config.base import Duration, Interval, Section
from tfft.config.data import DataConfig, Fraction, Source
from tfft.config.load import Config, dump, load, parse, schema
from tfft.config.methods import MethodConfig
from tfft.config.regularization import RegularizationConfig, SurgeryConfig
from tfft.config.sections import (
    DistributeConfig,
    EvaluateConfig,
    ExportConfig,
    MaskRule,
    ModelConfig,
    OptimizerConfig,
    TaskConfig,
    TrainConfig,
)

__all__ = [
    "AugmentationConfig",
    "Config",
    "DataConfig",
    "DistributeConfig",
    "Duration",
    "EvaluateConfig",
    "ExportConfig",
    "Fraction",
    "Interval",
    "MaskRule",
    "MethodConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RegularizationConfig",
    "Section",
    "Source",
    "SurgeryConfig",
    "TaskConfig",
    "TrainConfig",
    "dump",
    "load",
    "parse",
    "schema",
]
