"""BERT (Devlin et al. 2019), and the settings that its descendants share with it."""

from collections.abc import Mapping
from typing import Any

from tfft.backbones.families import weight_map
from tfft.backbones.families.encoder import Architecture
from tfft.backbones.families.family import Family, number, refuse
from tfft.spec import HeadStyle


def architecture(config: Mapping[str, Any]) -> Architecture:
    """Return the architecture of config.json, with BertConfig's defaults.

    Raises:
        UserError: A value is missing, out of bounds or unsupported.
    """
    # Such files would load, but relative positions and causal masks change the features.
    refuse(config, "position_embedding_type", ("absolute", None))
    refuse(config, "is_decoder", (False, None))
    return Architecture(
        vocabulary=number(config, "vocab_size"),
        width=number(config, "hidden_size"),
        layers=number(config, "num_hidden_layers"),
        heads=number(config, "num_attention_heads"),
        inner=number(config, "intermediate_size"),
        positions=number(config, "max_position_embeddings", 512),
        segments=number(config, "type_vocab_size", 2),
        activation=str(config.get("hidden_act", "gelu")),
        epsilon=number(config, "layer_norm_eps", 1e-12, float),
        dropout=number(config, "hidden_dropout_prob", 0.1, float),
        attention_dropout=number(config, "attention_probs_dropout_prob", 0.1, float),
    )


def build_weight_map(a: Architecture) -> weight_map.WeightMap:
    """Return the map from variable paths to BertModel's tensor names."""
    entries = {
        **weight_map.embedding("embeddings/token", "embeddings.word_embeddings"),
        **weight_map.embedding("embeddings/position", "embeddings.position_embeddings"),
        **weight_map.norm("embeddings/norm", "embeddings.LayerNorm"),
        **weight_map.dense("pooler", "pooler.dense"),
    }
    if a.segments:
        entries |= weight_map.embedding("embeddings/segment", "embeddings.token_type_embeddings")
    for index, block in enumerate(a.blocks):
        entries |= weight_map.block(
            block,
            f"encoder.layer.{index}",
            qkv=[f"attention.self.{part}" for part in ("query", "key", "value")],
            out="attention.output.dense",
            attention_norm="attention.output.LayerNorm",
            up="intermediate.dense",
            down="output.dense",
            output_norm="output.LayerNorm",
        )
    return entries


FAMILY = Family(
    prefixes=("bert.",),
    architecture=architecture,
    weight_map=build_weight_map,
    head_style=HeadStyle("pooled"),
    head_weight_map=weight_map.dense("head/logits", "classifier"),
    classifier="BertForSequenceClassification",
)
