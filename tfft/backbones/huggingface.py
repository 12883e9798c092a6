"""Read and write Hugging Face checkpoints: config.json and safetensors. No checkpoint code runs.

A checkpoint is loaded exactly or refused: features in float32 equal the original's to 1e-5 (text)
or 1e-4 (images).
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
from tfft.backbones.families.family import TOKEN_HEADS, Architecture, Family
from tfft.backbones.tensors import Tensors, weight_files
from tfft.config import ModelConfig
from tfft.spec import Backbone, HeadStyle, ImageSpec, StoredHead
from tfft.utils import pretrained
from tfft.utils.errors import UserError, nearest

_POOLING = "1_Pooling/config.json"  # of sentence-transformers
IMAGE_PROCESSOR = "preprocessor_config.json"


def load(config: ModelConfig, precision: str) -> Backbone:
    """Load a checkpoint's encoder with its weights.

    Args:
        config: the `model` section; its backbone is `hf:` and a repository or folder.
        precision: a Keras dtype policy.

    Raises:
        UserError: The checkpoint's family is unknown, or a tensor is missing or has a wrong shape.
    """
    folder = pretrained.folder(config.backbone.partition(":")[2], config.revision)
    settings = pretrained.read_json(folder / "config.json")
    family = _family(settings)
    a = family.architecture(settings)
    entries = family.weight_map(a)
    with Tensors(weight_files(folder, config.weights), family.prefixes) as tensors:
        # Masked language models, for example, are saved without a pooler.
        poolers = [entry for path, entry in entries.items() if path.startswith("pooler/")]
        description = {
            "provider": "hf",
            "config": settings,
            "dropout": config.dropout,
            "dropped": sorted(config.surgery.drop),
        }
        # Preprocessing of images, or the pooling of texts.
        if family.image_defaults is not None:
            description |= _image_settings(folder, settings, family, config.image_size)
        elif config.image_size is not None:
            raise UserError(f"model.image_size: {config.backbone} reads text")
        else:
            description["pooler"] = all(tensors.has(entry) for entry in poolers)
            # A stored head was trained on the family's pooling.
            description["pooling"] = _stored_pooling(folder) if config.head == "new" else None
        # Before the network is built: a config may describe more than any memory holds.
        _check_size(a, entries, tensors, str(settings.get("model_type")))
        backbone = rebuild(description, precision)
        _assign(backbone.model.weights, entries, tensors)
        head = _head(settings, family, tensors, backbone) if config.head == "checkpoint" else None
        return replace(backbone, fingerprint=tensors.fingerprint(settings), head=head)


def rebuild(description: Mapping[str, Any], precision: str) -> Backbone:
    """Build the architecture from its description, with random weights."""
    settings = description["config"]
    family = _family(settings)
    a, style = family.architecture(settings), family.head_style
    if description["dropout"] is not None:
        a = a.with_dropout(description["dropout"])
    if dropped := description.get("dropped"):
        a = a.without(dropped)
    if family.image_defaults is not None:
        spec = description["image_spec"]
        image_spec = ImageSpec(**{**spec, "size": tuple(spec["size"])})
        # Size and scaling are part of the network's graph.
        a = replace(a, size=image_spec.size, scaling=description["scaling"])
        return _backbone(a, style, precision, description, image_spec=image_spec)
    return _build_text_backbone(a, style, precision, description)


def _build_text_backbone(
    a: encoder.Architecture, style: HeadStyle, precision: str, description: Mapping[str, Any]
) -> Backbone:
    if not description["pooler"]:
        if style.pooling == "pooled":  # the checkpoint lacks the pooler: the head gets a new one
            style = HeadStyle("first", a.pooler)
        a = replace(a, pooler=None)
    # sentence-transformers trained the features for its own pooling.
    if description["pooling"]:
        style = HeadStyle(description["pooling"])
    # RoBERTa's first position is pad_id + 1, so its table has that many unused rows.
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
        raise UserError(f"model.image_size: {image_spec.size} does not fit: {reason}") from None
    return Backbone(
        model=model,
        stages=a.stages(),
        head_style=style,
        fingerprint="",
        description=description,
        max_length=max_length,
        image_spec=image_spec,
    )


def _image_settings(
    folder: Path, settings: Mapping[str, Any], family: Family, size: int | None
) -> dict[str, Any]:
    """Return `image_spec` and `scaling` of a checkpoint as plain data.

    Args:
        folder: the checkpoint.
        settings: its config.json.
        family: its family, with the defaults for a missing preprocessor_config.json.
        size: height and width that replace the checkpoint's; None: its size.
    """
    path = folder / IMAGE_PROCESSOR
    processor_config = pretrained.read_json(path) if path.exists() else None
    architecture_size = family.architecture(settings).size
    image_spec, scaling = processor.read(processor_config, family.image_defaults, architecture_size)
    if size is not None:
        image_spec = replace(image_spec, size=(size, size))
    return {"image_spec": asdict(image_spec), "scaling": scaling}


def save(
    model: keras.Model,
    backbone: Backbone,
    labels: Sequence[str],
    folder: Path,
    image_spec: ImageSpec | None = None,
    problem_type: str | None = None,
    head: Mapping[str, np.ndarray] | None = None,
    head_kind: str = "rows",
) -> None:
    """Write a classifier as a Hugging Face checkpoint that transformers loads.

    Args:
        model: the classifier, with its head under `head/`.
        backbone: its backbone, loaded from a Hugging Face checkpoint.
        labels: class names, in the order of the logits.
        folder: where to write; created if missing.
        image_spec: the images that it reads; None: it reads text.
        problem_type: what transformers makes of the logits; None: one class.
        head: weights of the head by path; None: the model's.
        head_kind: kind of the head (`StoredHead.kind`).

    Raises:
        UserError: The head does not have the form of the family's classifier.
    """
    settings, new_blocks = _remaining_blocks(backbone.description)
    family = _family(settings).with_head(head_kind)
    # transformers would initialize missing tensors at random, with no more than a warning.
    weights = {v.path: np.asarray(v.value) for v in model.weights} | dict(head or {})
    head_paths = {path for path in weights if path.startswith("head/")}
    pooling = "tokens" if head_kind != "rows" else model.get_layer("pooling").kind
    if head_paths != set(family.head_weight_map) or pooling != family.head_style.pooling:
        raise UserError(
            f"the head ({', '.join(sorted(head_paths))}) has another form than "
            f"{family.classifier}'s; train with task.pooling: {family.head_style.pooling}"
        )
    tensors = _tensors(weights, family, settings, new_blocks)
    # By it, transformers' pipelines apply softmax, sigmoid or nothing to the logits.
    settings.pop("problem_type", None)
    if problem_type is not None:
        settings["problem_type"] = problem_type
    settings["architectures"] = [family.classifier]
    settings["id2label"] = {str(i): label for i, label in enumerate(labels)}
    settings["label2id"] = {label: i for i, label in enumerate(labels)}
    files: dict[str, Any] = {"config.json": settings}
    if image_spec is not None:
        files[IMAGE_PROCESSOR] = processor.write(image_spec, backbone.description["scaling"])
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    # transformers refuses safetensors files without this metadata.
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _remaining_blocks(description: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the checkpoint's config without the blocks that were dropped, and their new names.

    Args:
        description: that of the backbone.

    Returns:
        A copy of the config, and name of a block -> its name in the new checkpoint, empty where no
        block was dropped.
    """
    settings = dict(description["config"])
    dropped = description.get("dropped")
    if not dropped:
        return settings, {}
    remaining = [
        name for name in _family(settings).architecture(settings).blocks if name not in dropped
    ]
    # DistilBERT names it n_layers.
    count_key = next(key for key in ("num_hidden_layers", "n_layers") if key in settings)
    settings[count_key] = len(remaining)
    # transformers numbers layers without gaps.
    return settings, {name: f"block_{i}" for i, name in enumerate(remaining)}


def _tensors(
    weights: Mapping[str, np.ndarray],
    family: Family,
    settings: Mapping[str, Any],
    new_blocks: Mapping[str, str],
) -> dict[str, np.ndarray]:
    """Return weights by path under the names of a checkpoint.

    Raises:
        UserError: a weight has no form in the checkpoint.
    """
    architecture = family.architecture(settings)
    entries = {**family.weight_map(architecture), **family.head_weight_map}
    paths = {path: _rename_block(path, new_blocks) for path in weights}
    # Adapters and other injected weights have no tensor.
    unmapped = [path for path in paths.values() if path not in entries]
    if unmapped:
        raise UserError(f"export: {unmapped[0]} has no form in transformers' {family.classifier}")
    tensors: dict[str, np.ndarray] = {}
    for path, weight in weights.items():
        prefix = "" if path in family.head_weight_map else family.prefixes[0]
        entry = entries[paths[path]]
        values = weight_map.write(entry, weight)
        tensors |= {prefix + t: v for t, v in zip(entry.tensors, values, strict=True)}
    return tensors


def _rename_block(path: str, new_names: Mapping[str, str]) -> str:
    first, _, rest = path.partition("/")
    return f"{new_names.get(first, first)}/{rest}"


def _family(settings: Mapping[str, Any]) -> Family:
    # One `model_type` may have several classifiers (DeiT), so the class name comes first.
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
    """Return `mean` if sentence-transformers pools the checkpoint so, else None."""
    if not (folder / _POOLING).exists():
        return None
    return (
        "mean" if pretrained.read_json(folder / _POOLING).get("pooling_mode_mean_tokens") else None
    )


def _check_size(
    a: Architecture, entries: weight_map.WeightMap, tensors: Tensors, kind: str
) -> None:
    """Refuse an architecture whose weights the files do not hold, before it is allocated.

    Raises:
        UserError: A tensor is missing, or the files hold fewer numbers than the architecture needs.
    """
    for path, entry in entries.items():
        if not path.startswith("pooler/") and not tensors.has(entry):
            raise UserError(
                f"{tensors.path}: lacks {entry.tensors[0]!r}; is it a {kind} checkpoint?"
            )
    if tensors.size < a.parameters:
        raise UserError(
            f"{tensors.path}: holds {tensors.size:,} numbers where config.json requires "
            f"{a.parameters:,} at least"
        )


def _assign(
    variables: Sequence[keras.Variable], entries: weight_map.WeightMap, tensors: Tensors
) -> None:
    for variable in variables:
        variable.assign(tensors.get(entries[variable.path], tuple(variable.shape)))


def _head(
    settings: Mapping[str, Any], family: Family, tensors: Tensors, backbone: Backbone
) -> StoredHead:
    kind = _head_kind(settings)
    family = family.with_head(kind)
    if not all(tensors.has(entry) for entry in family.head_weight_map.values()):
        raise UserError(
            f"model.head: checkpoint: {tensors.path} holds no classification head; use head: new"
        )
    width = (backbone.features.get("pooled") or backbone.features["sequence"]).width
    # From the tensor, because config.json may lack id2label.
    classes = math.prod(tensors.shape(family.head_weight_map["head/logits/bias"].tensors[0]))
    shapes = {
        "head/dense/kernel": (width, width),
        "head/dense/bias": (width,),
        "head/logits/kernel": (width, classes),
        "head/logits/bias": (classes,),
    }
    weights = {
        path: tensors.get(entry, shapes[path]) for path, entry in family.head_weight_map.items()
    }
    # transformers' default names.
    names = settings.get("id2label") or {str(i): f"LABEL_{i}" for i in range(classes)}
    if not isinstance(names, Mapping):
        raise UserError(f"config.json: id2label must be an object. Received: {names!r:.60}")
    try:
        labels = tuple(str(names[str(i)]) for i in range(classes))
    except KeyError as error:
        raise UserError(f"config.json: id2label lacks class {error}") from None
    return StoredHead(labels, weights, kind)


def _head_kind(settings: Mapping[str, Any]) -> str:
    """Return the kind of a checkpoint's head (`StoredHead.kind`) by the name of its class."""
    classes = settings.get("architectures")
    for name in classes if isinstance(classes, list) else ():
        for kind, (suffix, _) in TOKEN_HEADS.items():
            if isinstance(name, str) and name.endswith(suffix):
                return kind
    return "rows"
