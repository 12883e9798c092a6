"""Families of Hugging Face checkpoints. `FAMILIES` maps `model_type` to the family."""

from collections.abc import Mapping
from types import MappingProxyType

from tfft.backbones.families import (
    albert,
    bert,
    convnext,
    distilbert,
    mobilenet,
    resnet,
    roberta,
    swin,
    vit,
)
from tfft.backbones.families.family import Family

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "bert": bert.FAMILY,
        "distilbert": distilbert.FAMILY,
        "roberta": roberta.ROBERTA,
        "xlm-roberta": roberta.XLM_ROBERTA,
        "albert": albert.FAMILY,
        "vit": vit.VIT,
        "deit": vit.DEIT,
        # A class in `architectures` takes precedence over `model_type`.
        vit.DEIT_WITH_TEACHER.classifier: vit.DEIT_WITH_TEACHER,
        "dinov2": vit.DINOV2,
        "swin": swin.FAMILY,
        "convnext": convnext.FAMILY,
        "resnet": resnet.FAMILY,
        "mobilenet_v2": mobilenet.FAMILY,
    }
)
