"""Families of Hugging Face checkpoints: `model_type` -> what tfft must know of it."""

from collections.abc import Mapping
from types import MappingProxyType

from tfft.backbones.families import albert, bert, distilbert, roberta
from tfft.backbones.families.family import Family

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "bert": bert.FAMILY,
        "distilbert": distilbert.FAMILY,
        "roberta": roberta.ROBERTA,
        "xlm-roberta": roberta.XLM_ROBERTA,
        "albert": albert.FAMILY,
    }
)
