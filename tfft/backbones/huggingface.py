"""Hugging Face checkpoints: config.json and safetensors, read and written, nothing run.

What a checkpoint holds is loaded exactly or refused: features equal the original's to 1e-5 in
float32 (texts) or 1e-4 (pictures).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors.numpy import save_file

from tfft.backbones.families import FAMILIES, encoder, processor, weight_map
from tfft.backbones.families.family import Architecture, Family
from tfft.backbones.tensors import Tensors, weight_files
from tfft.config import ModelConfig
from tfft.spec import Backbone, HeadStyle, ImageSpec, StoredHead
from tfft.utils import pretrained
from tfft.utils.errors import UserError, nearest

_POOLING = "1_Pooling/config.json"  # of sentence-transformers
PICTURES = "preprocessor_config.json"


def load(config: ModelConfig, precision: str) -> Backbone:
    """A checkpoint's encoder with its weights.

    Raises:
        UserError: not a checkpoint of a known family, or a tensor is missing or misshapen.
    """
    folder = pretrained.folder(config.backbone.partition(":")[2], config.revision)
    settings = pretrained.read_json(folder / "config.json")
    family = _family(settings)
    a = family.architecture(settings)
    table = family.names(a)
    with Tensors(weight_files(folder, config.weights), family.prefixes) as tensors:
        poolers = [entry for path, entry in table.items() if path.startswith("pooler/")]
        description = {
            "provider": "hf",
            "config": settings,
            "dropout": config.dropout,
            "dropped": sorted(config.surgery.drop),
        }
        if family.image_defaults is not None:
            description |= _pictures(folder, settings, family, config.image_size)
        elif config.image_size is not None:
            raise UserError(f"model.image_size: {config.backbone} reads text")
        else:
            description["pooler"] = all(tensors.has(entry) for entry in poolers)
            description["pooling"] = _stored_pooling(folder) if config.head == "new" else None
        _check_size(a, table, tensors, str(settings.get("model_type")))
        backbone = rebuild(description, precision)
        _assign(backbone.model.weights, table, tensors)
        head = _head(settings, family, tensors, backbone) if config.head == "checkpoint" else None
        return replace(backbone, fingerprint=tensors.fingerprint(settings), head=head)


def rebuild(description: Mapping[str, Any], precision: str) -> Backbone:
    """The architecture alone, from what `load` described."""
    settings = description["config"]
    family = _family(settings)
    a, style = family.architecture(settings), family.head_style
    if description["dropout"] is not None:
        a = a.with_dropout(description["dropout"])
    if dropped := description.get("dropped"):
        a = a.without(dropped)
    if family.image_defaults is not None:
        given = description["image_spec"]
        image_spec = ImageSpec(**{**given, "size": tuple(given["size"])})
        a = replace(a, size=image_spec.size, scaling=description["scaling"])
        return _backbone(a, style, precision, description, image_spec=image_spec)
    return _of_text(a, style, precision, description)


def _of_text(
    a: encoder.Architecture, style: HeadStyle, precision: str, description: Mapping[str, Any]
) -> Backbone:
    if not description["pooler"]:
        if style.pooling == "pooled":  # a fresh pooler, as part of the head
            style = HeadStyle("first", a.pooler)
        a = replace(a, pooler=None)
    if description["pooling"]:
        style = HeadStyle(description["pooling"])
    # RoBERTa's first position stands after the padding id.
    length = a.positions - (a.pad_id + 1 if a.pad_id is not None else 0)
    return _backbone(a, style, precision, description, max_length=length)


def _backbone(
    a: Architecture,
    style: HeadStyle,
    precision: str,
    description: Mapping[str, Any],
    *,
    max_length: int | None = None,
    image_spec: ImageSpec | None = None,
) -> Backbone:
    try:
        model = a.build(precision)
    except ValueError as error:
        if image_spec is None:
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"model.image_size: {image_spec.size} does not go: {reason}") from None
    return Backbone(
        model=model,
        stages=a.stages(),
        features=a.features(),
        head_style=style,
        fingerprint="",
        description=description,
        max_length=max_length,
        image_spec=image_spec,
    )


def _pictures(
    folder: Path, settings: Mapping[str, Any], family: Family, size: int | None
) -> dict[str, Any]:
    """What pictures a checkpoint reads and how they are scaled, as plain data."""
    path = folder / PICTURES
    given = pretrained.read_json(path) if path.exists() else None
    own = family.architecture(settings).size
    image_spec, scaling = processor.read(given, family.image_defaults, own)
    if size is not None:
        image_spec = replace(image_spec, size=(size, size))
    return {"image_spec": asdict(image_spec), "scaling": scaling}


def save(
    model: keras.Model,
    backbone: Backbone,
    labels: Sequence[str],
    folder: Path,
    image_spec: ImageSpec | None = None,
    multi_label: bool = False,
) -> None:
    """Write a classifier as a Hugging Face checkpoint that transformers loads.

    Args:
        picture: what pictures it reads; None: texts.
        several: whether a row may have several labels.

    Raises:
        UserError: the head is not of the form that the family's own classifier has.
    """
    settings = dict(backbone.description["config"])
    family = _family(settings)
    numbers = family.architecture(settings)
    renamed: dict[str, str] = {}
    if dropped := backbone.description.get("dropped"):
        left = [name for name in numbers.blocks if name not in dropped]
        renamed = {name: f"block_{i}" for i, name in enumerate(left)}
        layers = next(key for key in ("num_hidden_layers", "n_layers") if key in settings)
        settings[layers] = len(left)
        numbers = family.architecture(settings)
    table = {**family.names(numbers), **family.head_names}
    head = {v.path: v for v in model.weights if v.path.startswith("head/")}
    if set(head) != set(family.head_names) or (
        model.get_layer("pooling").kind != family.head_style.pooling
    ):
        raise UserError(
            f"the head ({', '.join(sorted(head))}) has another form than "
            f"{family.classifier}'s; train with task.pooling: {family.head_style.pooling}"
        )
    paths = {v.path: _renamed(v.path, renamed) for v in model.weights}
    foreign = [path for path in paths.values() if path not in table]
    if foreign:
        raise UserError(f"export: {foreign[0]} has no form in transformers' {family.classifier}")
    tensors: dict[str, np.ndarray] = {}
    for variable in model.weights:
        prefix = "" if variable.path in head else family.prefixes[0]
        entry = table[paths[variable.path]]
        values = weight_map.write(entry, np.asarray(variable.value))
        tensors |= {prefix + t: v for t, v in zip(entry.tensors, values, strict=True)}
    if image_spec is not None:
        shown = processor.write(image_spec, backbone.description["scaling"])
    if multi_label:
        settings["problem_type"] = "multi_label_classification"
    settings["architectures"] = [family.classifier]
    settings["id2label"] = {str(i): label for i, label in enumerate(labels)}
    settings["label2id"] = {label: i for i, label in enumerate(labels)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    if image_spec is not None:
        (folder / PICTURES).write_text(json.dumps(shown, indent=2), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _renamed(path: str, blocks: Mapping[str, str]) -> str:
    first, _, rest = path.partition("/")
    return f"{blocks.get(first, first)}/{rest}"


def _family(settings: Mapping[str, Any]) -> Family:
    kind, classes = settings.get("model_type"), settings.get("architectures")
    for name in classes if isinstance(classes, list) else ():
        if isinstance(name, str) and name in FAMILIES:
            return FAMILIES[name]
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(
            f"config.json: model_type {kind!r:.60} is not supported{nearest(kind, FAMILIES)}"
        )
    return FAMILIES[kind]


def _stored_pooling(folder: Path) -> str | None:
    """How sentence-transformers pools this checkpoint, where it says so."""
    if not (folder / _POOLING).exists():
        return None
    return (
        "mean" if pretrained.read_json(folder / _POOLING).get("pooling_mode_mean_tokens") else None
    )


def _check_size(a: Architecture, table: weight_map.WeightMap, tensors: Tensors, kind: str) -> None:
    """Refuse an architecture whose weights the files do not hold, before memory is taken for it."""
    for path, entry in table.items():
        if not path.startswith("pooler/") and not tensors.has(entry):
            raise UserError(
                f"{tensors.where}: lacks {entry.tensors[0]!r}; is it a {kind} checkpoint?"
            )
    if tensors.size < a.parameters:
        raise UserError(
            f"{tensors.where}: holds {tensors.size:,} numbers where config.json requires "
            f"{a.parameters:,} at least"
        )


def _assign(
    variables: Sequence[keras.Variable], table: weight_map.WeightMap, tensors: Tensors
) -> None:
    for variable in variables:
        variable.assign(tensors.get(table[variable.path], tuple(variable.shape)))


def _head(
    settings: Mapping[str, Any], family: Family, tensors: Tensors, backbone: Backbone
) -> StoredHead:
    if not all(tensors.has(entry) for entry in family.head_names.values()):
        raise UserError(
            f"model.head: checkpoint: {tensors.where} holds no classification head; use head: new"
        )
    width = backbone.features.get("pooled") or backbone.features["sequence"]
    classes = math.prod(tensors.shape(family.head_names["head/logits/bias"].tensors[0]))
    shapes = {
        "head/dense/kernel": (width, width),
        "head/dense/bias": (width,),
        "head/logits/kernel": (width, classes),
        "head/logits/bias": (classes,),
    }
    weights = {path: tensors.get(entry, shapes[path]) for path, entry in family.head_names.items()}
    names_ = settings.get("id2label") or {str(i): f"LABEL_{i}" for i in range(classes)}
    if not isinstance(names_, Mapping):
        raise UserError(f"config.json: id2label must be an object. Received: {names_!r:.60}")
    try:
        labels = tuple(str(names_[str(i)]) for i in range(classes))
    except KeyError as error:
        raise UserError(f"config.json: id2label lacks class {error}") from None
    return StoredHead(labels, weights)
