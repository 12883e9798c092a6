"""Preparation of raw inputs, in pairs: on the host for training, in the graph for serving.

The two are equal, id for id, by test, and export refuses to publish a model for which they are
not.
"""

from pathlib import Path

from tfft.config import DataConfig, ModelConfig
from tfft.preprocess import kerashub, tokenizer
from tfft.preprocess.text import TextInputs

__all__ = ["TextInputs", "load"]


def load(model: ModelConfig, data: DataConfig) -> TextInputs:
    """The tokenizer that belongs to a backbone, cutting at `data.max_length`."""
    provider, _, name = model.backbone.partition(":")
    if provider == "kerashub":
        spec = kerashub.tokenizer_spec(name)
    else:
        spec = tokenizer.from_checkpoint(name, model.revision)
    return TextInputs(spec, data.max_length, pair=data.text_pair is not None)


def restore(folder: Path) -> TextInputs:
    """The tokenizer that a run saved with `TextInputs.save`."""
    return TextInputs.restore(folder)
