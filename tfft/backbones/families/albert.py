"""ALBERT (Lan et al. 2020): small embeddings, and blocks that share their weights in groups."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tfft.backbones.families import bert, weight_map
from tfft.backbones.families.encoder import Architecture
from tfft.backbones.families.family import Family, number
from tfft.spec import HeadStyle
from tfft.utils.errors import UserError


def architecture(config: Mapping[str, Any]) -> Architecture:
    """Return the architecture of config.json, with AlbertConfig's defaults.

    Raises:
        UserError: A value is missing, out of bounds or unsupported.
    """
    # Where AlbertConfig's defaults differ from BertConfig's.
    defaults = {
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_hidden_layers": 12,
    }
    a = bert.architecture({**defaults, **config})
    groups = number(config, "num_hidden_groups", 1)
    if not 1 <= groups <= a.layers:
        raise UserError(
            f"config.json: num_hidden_groups must be 1 to {a.layers}. Received: {groups}"
        )
    return replace(
        a,
        embedding_width=number(config, "embedding_size", 128),
        groups=groups,
        per_group=number(config, "inner_group_num", 1),
    )


def build_weight_map(a: Architecture) -> weight_map.WeightMap:
    """Return the map from variable paths to AlbertModel's tensor names."""
    entries = {
        **weight_map.embedding("embeddings/token", "embeddings.word_embeddings"),
        **weight_map.embedding("embeddings/position", "embeddings.position_embeddings"),
        **weight_map.norm("embeddings/norm", "embeddings.LayerNorm"),
        **weight_map.dense("embeddings/project", "encoder.embedding_hidden_mapping_in"),
        **weight_map.dense("pooler", "pooler"),
    }
    if a.segments:
        entries |= weight_map.embedding("embeddings/segment", "embeddings.token_type_embeddings")
    # Blocks are numbered group by group.
    for index, block in enumerate(a.blocks):
        group, inner = divmod(index, a.per_group)
        entries |= weight_map.block(
            block,
            f"encoder.albert_layer_groups.{group}.albert_layers.{inner}",
            qkv=[f"attention.{part}" for part in ("query", "key", "value")],
            out="attention.dense",
            attention_norm="attention.LayerNorm",
            up="ffn",
            down="ffn_output",
            output_norm="full_layer_layer_norm",
        )
    return entries


FAMILY = Family(
    prefixes=("albert.",),
    architecture=architecture,
    weight_map=build_weight_map,
    head_style=HeadStyle("pooled"),
    head_weight_map=weight_map.dense("head/logits", "classifier"),
    classifier="AlbertForSequenceClassification",
)
