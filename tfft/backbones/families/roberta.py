"""RoBERTa (Liu et al. 2019) and XLM-RoBERTa (Conneau et al. 2020): BERT with other positions.

Positions count real tokens and begin at the padding id + 1. The classifier has a separate dense
layer on the first token and ignores the pooler.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tfft.backbones.families import bert, weight_map
from tfft.backbones.families.encoder import Architecture
from tfft.backbones.families.family import Family, number
from tfft.spec import HeadStyle
from tfft.utils.errors import UserError


def architecture(config: Mapping[str, Any]) -> Architecture:
    """Return BERT's architecture with positions that begin after the padding id.

    Raises:
        UserError: A value is missing, out of bounds or unsupported.
    """
    a = bert.architecture({"type_vocab_size": 2, **config})
    padding = number(config, "pad_token_id", 1)
    if padding + 1 >= a.positions:
        raise UserError(
            f"config.json: max_position_embeddings must exceed {padding + 1}, the positions up to "
            f"that of padding. Received: {a.positions}"
        )
    return replace(a, pad_id=padding)


def _family(classifier: str) -> Family:
    return Family(
        prefixes=("roberta.",),
        architecture=architecture,
        weight_map=bert.build_weight_map,
        head_style=HeadStyle("first", "tanh"),
        head_weight_map={
            **weight_map.dense("head/dense", "classifier.dense"),
            **weight_map.dense("head/logits", "classifier.out_proj"),
        },
        classifier=classifier,
    )


ROBERTA = _family("RobertaForSequenceClassification")
XLM_ROBERTA = _family("XLMRobertaForSequenceClassification")
