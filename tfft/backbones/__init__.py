"""Pretrained backbones: a provider's name in the YAML -> a `Backbone`."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from tfft.backbones import applications, hub, huggingface, kerashub, timm
from tfft.config import ModelConfig
from tfft.spec import Backbone

# provider -> (load from a config, rebuild from a saved description without weights)
Provider = tuple[
    Callable[[ModelConfig, str], Backbone], Callable[[Mapping[str, Any], str], Backbone]
]
BACKBONES: Mapping[str, Provider] = MappingProxyType(
    {
        "hf": (huggingface.load, huggingface.rebuild),
        "hub": (hub.load, hub.rebuild),
        "keras": (applications.load, applications.rebuild),
        "kerashub": (kerashub.load, kerashub.rebuild),
        "timm": (timm.load, timm.rebuild),
    }
)


def load(config: ModelConfig, precision: str = "float32") -> Backbone:
    """The backbone that `model.backbone` names, with its pretrained weights.

    Raises:
        UserError: it cannot be found, or is of a kind that tfft cannot load exactly.
    """
    return BACKBONES[config.backbone.partition(":")[0]][0](config, precision)


def rebuild(description: Mapping[str, Any], precision: str = "float32") -> Backbone:
    """The architecture of a saved `Backbone.description`, its weights not yet loaded."""
    return BACKBONES[description["provider"]][1](description, precision)
