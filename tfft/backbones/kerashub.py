"""KerasHub presets: encoders of texts and of pictures through KerasHub's own classes.

They compute what KerasHub computes, which for some checkpoints is not what the original does
(tanh-gelu for gelu in BERT and ALBERT: 5e-3 on MiniLM). Where a Hugging Face checkpoint of the
same model is to be had, `hf:` is exact.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import keras
import numpy as np

from tfft.backbones import kerashub_images, pixels
from tfft.config import ModelConfig
from tfft.preprocess.kerashub import check_encoder, read_settings
from tfft.spec import Backbone, HeadStyle, ImageSpec, Stage
from tfft.utils.errors import UserError
from tfft.utils.reading import library_errors

_BLOCK = re.compile(r"^(?:transformer_layer_\d+|group_\d+_inner_layer_\d+)$")
_INPUTS = {"token_ids", "padding_mask", "segment_ids"}


def load(config: ModelConfig, precision: str) -> Backbone:
    """A preset's encoder with its weights.

    Raises:
        UserError: no such preset, or it is no encoder that is known here.
    """
    import keras_hub

    name, size = config.backbone.partition(":")[2], config.image_size
    shape = {"image_shape": (size, size, 3)} if size is not None else {}
    check_encoder(name)
    with library_errors(f"model.backbone: kerashub:{name} cannot be loaded"):
        inner = keras_hub.models.Backbone.from_preset(name, dtype=precision, **shape)
    if kerashub_images.is_of_pictures(inner):
        backbone = _of_pictures(inner, _shown(inner, name, config))
    elif size is not None or config.scaling is not None:
        raise UserError(f"model.image_size, model.scaling: kerashub:{name} reads no pictures")
    else:
        backbone = _wrap(inner)
    return replace(backbone, fingerprint=_fingerprint(inner, backbone.description))


def rebuild(description: Mapping[str, Any], precision: str) -> Backbone:
    """The architecture alone, from what `load` described."""
    import keras_hub

    cls = getattr(keras_hub.models, description["class"], None)
    if not (isinstance(cls, type) and issubclass(cls, keras_hub.models.Backbone)):
        raise UserError(f"keras-hub has no backbone {description['class']!r}")
    inner = cls.from_config({**description["config"], "dtype": precision})
    if "image_spec" in description:
        return _of_pictures(inner, description)
    return _wrap(inner)


def _of_pictures(inner: keras.Model, shown: Mapping[str, Any]) -> Backbone:
    given = shown["image_spec"]
    image_spec = ImageSpec(**{**given, "size": tuple(given["size"])})
    settings = {k: v for k, v in inner.get_config().items() if k not in ("dtype", "name")}
    description = {"provider": "kerashub", "class": type(inner).__name__, "config": settings}
    description |= {"image_spec": dict(given), "scaling": dict(shown["scaling"])}
    return kerashub_images.wrap(inner, image_spec, shown["scaling"], description)


def _shown(inner: keras.Model, name: str, config: ModelConfig) -> dict[str, Any]:
    """The pictures that a preset reads and how they are scaled: its image converter says."""
    import keras_hub

    read_settings(name, "image_converter.json", optional=True)
    try:
        with library_errors("no image converter"):
            converter = keras_hub.layers.ImageConverter.from_preset(name)
    except UserError:
        converter = None
    own = inner.inputs[0].shape[1]
    size = getattr(converter, "image_size", None) or (own or 224,) * 2
    if config.image_size is not None:
        size = (config.image_size, config.image_size)
    if config.scaling is not None:
        scaling = dict(pixels.SCALINGS[config.scaling])
    elif converter is None:
        raise UserError(f"model.scaling: kerashub:{name} has no image converter; name its scaling")
    else:
        # x * scale + offset is (x - mean) / deviation.
        scale, offset = (
            np.broadcast_to(np.asarray(v if v is not None else default, np.float64).ravel(), 3)
            for v, default in ((converter.scale, 1.0), (converter.offset, 0.0))
        )
        scaling = {"mean": (-offset / scale).tolist(), "deviation": (1 / scale).tolist()}
    kind = "crop" if getattr(converter, "crop_to_aspect_ratio", True) else "stretch"
    if getattr(converter, "pad_to_aspect_ratio", False):
        kind = "pad"
    interpolation = str(getattr(converter, "interpolation", "bilinear"))
    image_spec = ImageSpec((int(size[0]), int(size[1])), kind, interpolation)
    return {"image_spec": asdict(image_spec), "scaling": scaling}


def _wrap(inner: keras.Model) -> Backbone:
    wanted = {tensor.name for tensor in inner.inputs}
    blocks = [layer.name for layer in inner.layers if _BLOCK.match(layer.name)]
    if not wanted <= _INPUTS or not blocks:
        raise UserError(
            f"model.backbone: {type(inner).__name__} is not an encoder that tfft knows "
            f"(inputs: {', '.join(sorted(wanted))})"
        )
    inputs = {name: keras.Input([None], dtype="int32", name=name) for name in sorted(_INPUTS)}
    outputs = inner({name: inputs[name] for name in wanted})
    if not isinstance(outputs, dict):
        outputs = {"sequence_output": outputs}
    named = {"sequence_output": "sequence", "pooled_output": "pooled"}
    outputs = {named[key]: value for key, value in outputs.items() if key in named}
    length = getattr(inner, "max_sequence_length", None)
    settings = {k: v for k, v in inner.get_config().items() if k not in ("dtype", "name")}
    return Backbone(
        model=keras.Model(inputs, outputs, name="encoder"),
        stages=_stages(inner, blocks),
        features={key: value.shape[-1] for key, value in outputs.items()},
        head_style=HeadStyle("pooled" if "pooled" in outputs else "first"),
        fingerprint="",
        description={"provider": "kerashub", "class": type(inner).__name__, "config": settings},
        max_length=length,
    )


def _stages(inner: keras.Model, blocks: list[str]) -> tuple[Stage, ...]:
    """Embeddings, the blocks and the pooler, read off the layers that have weights."""
    top = [layer.name for layer in inner.layers if layer.weights]
    pooler = [name for name in top if name.startswith("pooled")]
    below = [name for name in top if name not in blocks and name not in pooler]
    stages = [Stage("embeddings", f"(?:{'|'.join(map(re.escape, below))})/")]
    stages += [Stage(f"block_{i}", f"{re.escape(name)}/") for i, name in enumerate(blocks)]
    if pooler:
        stages.append(Stage("pooler", f"(?:{'|'.join(map(re.escape, pooler))})/"))
    return tuple(stages)


def _fingerprint(model: keras.Model, description: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(description, sort_keys=True, default=str).encode())
    for variable in model.weights:
        digest.update(np.ascontiguousarray(variable.value).tobytes())
    return digest.hexdigest()[:16]
