"""Pretrained backbones. `BACKBONES` maps the provider in `model.backbone` to its loader."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from tfft.backbones import applications, hub, huggingface, kerashub, timm, towers
from tfft.config import ModelConfig, ModelSection
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


def load(config: ModelSection, precision: str = "float32") -> Backbone:
    """Load the backbone that a config names, with its pretrained weights; two as one.

    Args:
        config: the `model` section.
        precision: a Keras dtype policy, for example `mixed_bfloat16`.

    Raises:
        UserError: It cannot be found, or tfft cannot load its kind exactly.
    """

    def load_single(single: ModelConfig) -> Backbone:
        return BACKBONES[single.backbone.partition(":")[0]][0](single, precision)

    if len(config.towers) > 1:
        return towers.load(config.towers, load_single)
    return load_single(config)


def rebuild(description: Mapping[str, Any], precision: str = "float32") -> Backbone:
    """Build the architecture of a saved `Backbone.description`, without its pretrained weights.

    Args:
        description: a `Backbone.description`; JSON values only.
        precision: a Keras dtype policy.
    """
    if "towers" in description:
        parts = {name: rebuild(part, precision) for name, part in description["towers"].items()}
        return towers.combine(parts)
    return BACKBONES[description["provider"]][1](description, precision)
