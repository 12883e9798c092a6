"""DistilBERT (Sanh et al. 2019): BERT without segments and pooler."""

from collections.abc import Mapping
from typing import Any

from tfft.backbones.families import weight_map
from tfft.backbones.families.encoder import Architecture
from tfft.backbones.families.family import Family, number
from tfft.spec import HeadStyle


def architecture(config: Mapping[str, Any]) -> Architecture:
    """Return the architecture of config.json, with DistilBertConfig's defaults.

    Raises:
        UserError: A value is missing, out of bounds or unsupported.
    """
    return Architecture(
        vocabulary=number(config, "vocab_size"),
        width=number(config, "dim", 768),
        layers=number(config, "n_layers", 6),
        heads=number(config, "n_heads", 12),
        inner=number(config, "hidden_dim", 3072),
        positions=number(config, "max_position_embeddings", 512),
        segments=0,
        activation=str(config.get("activation", "gelu")),
        epsilon=1e-12,  # fixed in transformers
        dropout=number(config, "dropout", 0.1, float),
        attention_dropout=number(config, "attention_dropout", 0.1, float),
        pooler=None,
    )


def build_weight_map(a: Architecture) -> weight_map.WeightMap:
    """Return the map from variable paths to DistilBertModel's tensor names."""
    entries = {
        **weight_map.embedding("embeddings/token", "embeddings.word_embeddings"),
        **weight_map.embedding("embeddings/position", "embeddings.position_embeddings"),
        **weight_map.norm("embeddings/norm", "embeddings.LayerNorm"),
    }
    for index, block in enumerate(a.blocks):
        entries |= weight_map.block(
            block,
            f"transformer.layer.{index}",
            qkv=[f"attention.{part}_lin" for part in "qkv"],
            out="attention.out_lin",
            attention_norm="sa_layer_norm",
            up="ffn.lin1",
            down="ffn.lin2",
            output_norm="output_layer_norm",
        )
    return entries


FAMILY = Family(
    prefixes=("distilbert.",),
    architecture=architecture,
    weight_map=build_weight_map,
    head_style=HeadStyle("first", "relu"),
    head_weight_map={
        **weight_map.dense("head/dense", "pre_classifier"),
        **weight_map.dense("head/logits", "classifier"),
    },
    classifier="DistilBertForSequenceClassification",
)
